"""Commands that made the README's figures; run them from a checkout."""
