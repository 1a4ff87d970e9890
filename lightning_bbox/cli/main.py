"""The command line's door: it answers help and slips of the pen before Lightning is imported."""

import atexit
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from lightning_bbox.cli.arguments import COMMANDS
from lightning_bbox.cli.first_look import look_first
from lightning_bbox.core.errors import BadInput

_HELP = """usage: lightning-bbox COMMAND [options]

Move rough boxes onto their objects.

commands:
{commands}

`lightning-bbox COMMAND --help` lists a command's options; `-c preset:NAME` takes a configuration
that comes with the package, such as preset:quickstart.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is done, 1 diverged or crashed, 2 bad input, 130 interrupted, 143 terminated.

    Args:
        args: The command line; that of the process by default.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments[:1] in (["-h"], ["--help"]):
        commands = "\n".join(f"  {name:9} {words}" for name, words in COMMANDS.items())
        sys.stdout.write(_HELP.format(commands=commands))
        return 0
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"lightning_bbox {version('lightning_bbox')}\n")
        return 0
    try:
        _refuse_other_command(arguments[:1])
        look_first(arguments)
        from lightning_bbox.cli.run import run
    except BadInput as refusal:
        sys.stderr.write(f"lightning-bbox: {refusal}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("lightning-bbox: interrupted\n")
        return 130
    return run(arguments)


def _refuse_other_command(first: list[str]) -> None:
    if first and first[0] in COMMANDS:
        return
    problem = f"{first[0]!r} is none" if first else "none is given"
    msg = f"command: {problem}; choose from {', '.join(COMMANDS)}"
    raise BadInput(msg)


def leave(code: int) -> NoReturn:
    """End the process; one of several without taking the interpreter down.

    Gloo's threads still hold connections to the others then, which end at their own time: once in
    some hundreds of runs such a process aborted after all its work was done, and torchrun took the
    whole run for failed.

    Args:
        code: The exit code.
    """
    distributed = sys.modules.get("torch.distributed")  # imported where there can be several
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
