"""The one way in which commands read options of their own, beside those of `fit`."""

import argparse
import re
from typing import NoReturn

from lightning_bbox.core.errors import BadInput

_OF_ONE = re.compile(r"argument (?:-\w/)?([\w./-]+): ")


class CommandParser(argparse.ArgumentParser):
    """Read a command's own options, and refuse wrong ones in one sentence.

    Args:
        command: The command.
        description: What it does.
        config: What its configurations are, where it takes any by `-c`.
        name: What its folder in `--runs` is called, where it makes one.

    Raises:
        BadInput: From `parse_args` and `parse_known_args`, where an option is wrong.

    Examples:
        >>> parser = CommandParser("audit", "Say which boxes are wrong.", name="audit-ROOT")
        >>> parser.parse_args(["--runs", "mine"])
        Namespace(runs='mine', name=None)
    """

    def __init__(self, command: str, description: str, *, config: str = "", name: str = "") -> None:
        super().__init__(
            prog=f"lightning-bbox {command}", allow_abbrev=False, description=description
        )
        if config:
            self.add_argument("-c", "--config", action="append", default=[], help=config)
        if name:
            self.add_argument("--runs", default="runs", help="folder of all runs; runs by default")
            self.add_argument("--name", help=f"name of the folder in it; {name} by default")

    def error(self, message: str) -> NoReturn:
        """Refuse what is wrong."""
        found = _OF_ONE.match(message)
        place, problem = (found[1], message[found.end() :]) if found else ("options", message)
        raise BadInput.at(place, problem, f"`{self.prog} --help` lists the options")
