"""What a command says: lines, warnings of a line each, and little of Lightning's own."""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from lightning_bbox.core.errors import CANNOT_WRITE


@rank_zero_only
def say(text: str) -> None:
    """Print what a person wants to read, once for all processes."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    r"""Escape what the terminal can't show, such as names of files that aren't UTF-8.

    Examples:
        >>> printable("caf\udce9.png")
        'caf\\udce9.png'
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def plain_warnings() -> Iterator[None]:
    r"""Say warnings as refusals are said, without the line of code that they come from.

    What Lightning says at every start is silenced for good; its warnings stay.
    """
    _quieten()
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"lightning-bbox: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def quietly(*names: str) -> Iterator[None]:
    """Keep to ourselves what is warned of, and what some loggers say below an error.

    Args:
        names: Of the loggers.

    Examples:
        >>> with quietly("somebody"):
        ...     warnings.warn("not now", stacklevel=1)
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _print_unless_told(failed: threading.ExceptHookArgs) -> None:
    """Print a thread's error, but not that of TensorBoard's writer: it hands it on as well."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in CANNOT_WRITE):
        threading.__excepthook__(failed)


def _quieten() -> None:
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_unless_told
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # It expects `args` from Python only, but ours are the command line's, resolved.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    # A run that is resumed has checkpoints; others are refused before they begin.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Testing a checkpoint needs none of the callbacks that trained it.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
    # A frozen backbone stays in it on purpose, and the rest trains whatever mode it came in.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    # Of models whose layers are sharded, as ours never are.
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
    # We refuse such pictures in a sentence of our own.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    # Lightning 2.6.6 hasn't followed torch 2.13's pytree.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
