"""The command `export`: its options, and what an exported model is compared on."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from lightning_bbox.cli.arguments import options, resolve
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded
from lightning_bbox.core.messages import say
from lightning_bbox.core.options import CommandParser
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import checkpoint_of
from lightning_bbox.pictures.decode import decode_image
from lightning_bbox.refinement.exported import SUFFIXES, GraphFormat
from lightning_bbox.refinement.exporting.export import REPORT, export
from lightning_bbox.refinement.exporting.parity import (
    Case,
    cases_of_data,
    cases_of_pictures,
    odd_cases,
)

Prepare = Callable[[list[str]], CropDataModule]
"""The command line's data module alone, by its arguments."""

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def export_command(arguments: Sequence[str], prepare: Prepare) -> None:
    """Run the command `export`.

    Args:
        arguments: The command line after `export`; what it doesn't know goes to the data.
        prepare: What makes the data module of a run's configuration.

    Raises:
        BadInput: The model can't be exported, or gives other boxes than its checkpoint.
    """
    own, others = export_parser().parse_known_args(list(arguments))
    if not own.ckpt_path:
        msg = "ckpt_path: missing; name the run's folder, or a checkpoint, with --ckpt_path"
        raise BadInput(msg)
    kind: GraphFormat = own.format
    checkpoint = checkpoint_of(expanded(own.ckpt_path))
    output = expanded(own.output) if own.output else _usual_output(expanded(own.ckpt_path), kind)
    law = own.law if own.law in ("own", "trained") else DisplacementLaw.load(expanded(own.law))
    model = OffsetModel.load_from_checkpoint(checkpoint)
    told = {"law": law, "max_shift": own.max_shift, "licence": own.licence}
    assert model.spec is not None
    per_class = model.spec.classes if model.net.head.per_class else ()
    cases = dict(_cases(own.pictures, own.ckpt_path, others, model, prepare))
    cases["odd cases"] = odd_cases(per_class)
    report = export(model, output, kind, cases=cases, **told)
    lines = [f"{output}: {report['bytes'] / 1e6:.3g} MB"]
    for name, found in report["parity"].items():
        lines.append(
            f"{name}: {found['boxes']} boxes on {found['pictures']} pictures differ by "
            f"{found['largest_px']:.2g} px at most, {found['mean_px']:.2g} on average; "
            f"{found['seconds']:.3g} s, a Refiner {found['refiner_seconds']:.3g}"
        )
    say("\n".join([*lines, f"the same in {output}{REPORT}"]))


def export_parser() -> CommandParser:
    """Return what reads the options of `export` alone."""
    parser = CommandParser(
        "export",
        "Write a trained model as one graph that runs without this package: from a "
        "picture and rough boxes to refined ones. It is compared with the checkpoint on the test "
        "split of its run, and on odd cases, and kept only where the results are the same. Options "
        "of --data change where that split is read.",
    )
    parser.add_argument("--ckpt_path", help="the run's folder, or a checkpoint")
    parser.add_argument(
        "--format",
        choices=get_args(GraphFormat),
        default="onnx",
        help="onnx (the default); pt2, a program of torch.export; aoti, a library that AOTInductor "
        "compiles for this machine's CPU",
    )
    parser.add_argument("--output", help="the file; model.onnx or model.pt2 in the run's folder")
    parser.add_argument(
        "--law",
        default="own",
        help="how boxes are off, where a caller says nothing else: the model's own, trained for "
        "none, or a law.json",
    )
    parser.add_argument(
        "--max_shift", type=float, help="leave boxes with an edge that would move farther, in px"
    )
    parser.add_argument(
        "--licence", default="not stated", help="terms of the model, for the file's metadata"
    )
    parser.add_argument(
        "--pictures",
        help="a folder of pictures to compare on instead of the test split, with boxes drawn at "
        "random",
    )
    return parser


def _usual_output(checkpoint: Path, kind: GraphFormat) -> Path:
    suffix = next(suffix for suffix, kinds in SUFFIXES.items() if kind in kinds)
    if checkpoint.is_dir():
        return checkpoint / f"model{suffix}"
    return checkpoint.with_suffix(suffix)


def _cases(
    pictures: str | None,
    checkpoint: str,
    others: list[str],
    model: OffsetModel,
    prepare: Prepare,
) -> Iterator[tuple[str, Iterator[Case]]]:
    """Yield what to compare on, beside odd cases: given pictures, or the run's test split."""
    assert model.spec is not None
    if pictures is not None:
        folder = expanded(pictures)
        if not folder.is_dir():
            msg = f"{folder}: no such folder of pictures; correct --pictures"
            raise BadInput(msg)
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
        if not found:
            msg = f"{folder}: holds no pictures ({', '.join(_PICTURES)}); correct --pictures"
            raise BadInput(msg)
        white, part = model.spec.white_level, model.spec.part
        decoded = [(path.name, decode_image(path, white, part)) for path in found]
        yield f"pictures of {folder}", cases_of_pictures(decoded, model.spec.classes)
        return
    words = resolve(["test", f"--ckpt_path={checkpoint}", *others])
    if not any(option.name == "--config" for option in options(words[1:])):
        if others:
            msg = (
                f"{others[0]}: there is no such option of export, and no run's configuration "
                f"beside {checkpoint} that it could be one of; leave it out"
            )
            raise BadInput(msg)
        say(f"{checkpoint} lies in no run's folder, so its test split isn't known")
        return
    data = prepare(words)
    data.follow(model.spec, needs_class=model.net.head.per_class)
    yield "test split", cases_of_data(data)
