"""The command `diagnose`: its options, its folder, and how it ends."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded
from lightning_bbox.core.messages import say
from lightning_bbox.core.options import CommandParser
from lightning_bbox.insight.diagnosis.case import Made
from lightning_bbox.insight.diagnosis.diagnose import diagnose
from lightning_bbox.insight.diagnosis.files import sentence, write_diagnosis
from lightning_bbox.insight.diagnosis.replay import replay, write_replay
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.training.divergence import BAD_STEP

MakeOf = Callable[[Sequence[str]], Made]
"""Makes a training of the options that `fit` would have."""

FOUND_CODE, INCOMPLETE_CODE = 3, 4
"""Exit codes where a cause was found, and where none was but a check can't be made."""


def run_diagnosis(arguments: Sequence[str], make: MakeOf) -> int:
    """Run the command `diagnose`, and return its exit code.

    Args:
        arguments: The command line after `diagnose`; what it doesn't know goes to the training.
        make: Makes trainings of options.

    Raises:
        BadInput: The training would be refused, or there is something in the folder.
    """
    own, options = diagnose_parser().parse_known_args(arguments)
    configs = [f"--config={config}" for config in own.config]
    subject = Path(own.config[-1]).name if own.config else "the training"
    if own.ckpt_path is not None:
        subject = str(own.ckpt_path)
    stem = Path(own.config[-1]).stem if own.config else "run"
    if stem == "config":  # a run's own: the run's name says more
        stem = Path(own.config[-1]).resolve().parent.name
    name = own.name or f"diagnose-{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = expanded(own.runs) / name
    if folder.exists() and any(folder.iterdir()):
        msg = f"{folder}: holds something already; choose another --name"
        raise BadInput(msg)
    if own.replay is not None:
        return _replayed(own.replay, make([*configs, *options]).model if configs else None, folder)
    say(f"diagnosis of {subject}")
    found = diagnose(
        lambda added: make([*configs, *options, *added]),
        subject,
        checkpoint=own.ckpt_path,
        minutes=own.minutes,
        steps=own.steps,
    )
    write_diagnosis(found, folder)
    words = sentence(found)
    say(f"\n{words[:1].upper()}{words[1:]}.\n\nall checks, with pictures: "
        f"{folder / 'diagnosis.html'}")  # fmt: skip
    if found.found:
        return FOUND_CODE
    return INCOMPLETE_CODE if found.raised else 0


def _replayed(path: Path, model: OffsetModel | None, folder: Path) -> int:
    """Replay the step that a run kept, tell what it came to, and return the exit code."""
    found = replay(path / BAD_STEP if path.is_dir() else path, model)
    write_replay(found, folder)
    say(f"{found.sentence}.\n\nall layers: {folder / 'replay.md'}")
    return FOUND_CODE


def diagnose_parser() -> CommandParser:
    """Return what reads the options of `diagnose` alone."""
    parser = CommandParser(
        "diagnose",
        "Say why a training doesn't learn, and measure what mends it. All options "
        "that aren't here are those of fit. Ends with 0 where nothing was found, with 3 where "
        "something was, with 4 where nothing was but a part of your own raised in a check.",
        config="a configuration of fit, or preset:NAME",
        name="diagnose-CONFIG-TIME",
    )
    parser.add_argument("--ckpt_path", help="a trained run, whose network is looked at then")
    parser.add_argument(
        "--replay",
        type=expanded,
        metavar="bad_step.pt",
        help="say where the step that a run diverged at first isn't finite, and nothing else",
    )
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="for trying cures, beside the checks"
    )
    parser.add_argument("--steps", type=int, default=300, help="steps of each short training")
    return parser
