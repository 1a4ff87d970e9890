"""Why a network learns or doesn't."""
