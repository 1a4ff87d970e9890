"""`python -m lightning_bbox` is `lightning-bbox`."""

from typing import NoReturn

from lightning_bbox.cli import main
from lightning_bbox.memory import keep_freed_memory
from lightning_bbox.ranks import leave


def run() -> NoReturn:
    """Run what the command line says, and end the process."""
    keep_freed_memory()
    leave(main())


if __name__ == "__main__":
    run()
