"""`python -m lightning_bbox` is `lightning-bbox`."""

import sys

from lightning_bbox.cli import main

if __name__ == "__main__":
    sys.exit(main())
