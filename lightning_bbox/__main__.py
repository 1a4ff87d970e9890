"""`python -m lightning_bbox` is `lightning-bbox`."""

from typing import NoReturn

from lightning_bbox.cli.main import leave, main
from lightning_bbox.core.memory import keep_freed_memory


def run() -> NoReturn:
    """Run what the command line says, and end the process."""
    keep_freed_memory()
    leave(main())


if __name__ == "__main__":
    run()
