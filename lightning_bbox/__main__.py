"""`python -m lightning_bbox` is `lightning-bbox`."""

from lightning_bbox.cli import run

if __name__ == "__main__":
    run()
