"""`python -m lightning_bbox` is `lightning-bbox`."""

from typing import NoReturn

from lightning_bbox.cli import main
from lightning_bbox.ranks import leave


def run() -> NoReturn:
    """Run what the command line says, and end the process."""
    leave(main())


if __name__ == "__main__":
    run()
