"""Classification into bins: labels, links, losses, decoders, and the head of them."""
