"""The command `audit`: models that each leave out a share of the pictures, and judge that share."""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from lightning_bbox.annotations.groups import groups_in
from lightning_bbox.annotations.splits import split_pictures
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import alone_in, encoded, make_folder, write_atomically
from lightning_bbox.core.messages import say
from lightning_bbox.core.options import CommandParser
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.loader import Rows
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.geometry.reliability import NORMAL, Reliability
from lightning_bbox.geometry.weighing import Said
from lightning_bbox.insight.audit import OVERLAP, judge, pooled, said_inside
from lightning_bbox.insight.audit_files import RECORD, Audited, refuse_foreign, write_audit
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.refinement.reviewing.review_page import MOST_REVIEWED, refuse_most
from lightning_bbox.reports.callbacks import Settings
from lightning_bbox.studies.nodes import Node
from lightning_bbox.studies.runs import Fit, Rehearse, default_jobs, found_results, run_study
from lightning_bbox.studies.study import Arm, Options, Study

Prepare = Callable[[list[str]], CropDataModule]
"""The command line's data module alone, by its arguments."""

WIDE: Options = {
    "data.jitter": "UniformJitter",
    "data.jitter.shift": 9.0,
    "data.jitter.log_scale": 0.5,
}
"""How far off the boxes are that audit models learn on: what is to be found is off by much."""
_BESIDES: Options = {"data.num_targets": 4, "model.average_flips": True}


def audit(
    arguments: list[str], fit: Fit, rehearse: Rehearse, prepare: Prepare, node: Node = Node()
) -> None:
    """Run the command `audit`: train a model a fold, judge every box, and write what was found.

    Args:
        arguments: The command line after `audit`; what it doesn't know goes to every fit.
        fit: The command line, for the folds.
        rehearse: What tells the settings that a fit would have, or why it would be refused.
        prepare: What makes the data module of a fit.
        node: This machine; of several each trains its share of the folds, and the first judges.

    Raises:
        BadInput: The audit can't be run, or a fold's training was refused, failed or diverged.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        msg = "audit needs a server of processes, which Windows hasn't; run it on Linux or macOS"
        raise BadInput(msg)
    own, options = audit_parser().parse_known_args(arguments)
    if any(word.partition("=")[0] == "--ckpt_path" for word in options):
        msg = "ckpt_path: audit trains its own models; leave it out"
        raise BadInput(msg)
    if own.folds < 2:
        msg = f"--folds is {own.folds}; give 2 or more"
        raise BadInput(msg)
    if not 0 < own.overlap < 1:
        msg = f"--overlap is {own.overlap:g}; give an IoU between 0 and 1, such as {OVERLAP:g}"
        raise BadInput(msg)
    refuse_most(own.review)
    if own.jobs is not None and own.jobs < 1:
        msg = f"--jobs is {own.jobs}; give 1 or more"
        raise BadInput(msg)
    asked = ["fit", *(f"--config={config}" for config in own.config), *options]
    data = prepare(asked)
    if not isinstance(data, BoxDataModule):
        msg = "audit judges the boxes of annotation files; give --data BoxDataModule --data.root"
        raise BadInput(msg)
    study = study_of(own.folds, own.config, rehearse(asked))
    folder = Path(own.runs) / (own.name or f"audit-{data.root.resolve().name}")
    make_folder(folder)
    jobs = own.jobs or default_jobs()
    if node.number:
        found = found_results(study, options, folder, rehearse)
        run_study(study, options, folder, jobs, fit, found, node)
        return
    with alone_in(folder):
        refuse_foreign(folder)
        data.setup("predict")
        assert data.rough is not None
        say("\n".join(data.source.notes))
        table = data.rough.table
        groups = _groups(table, data.splits.group_pattern)
        folds = folds_of(groups, own.folds, data.splits.seed)
        record = _record(folder, table, own.folds)
        found = found_results(study, options, folder, rehearse)
        results = run_study(study, options, folder, jobs, fit, found, node)
        for result in results:
            if result.status != "done":
                place = folder / result.run.name
                problem = f"{result.status} ({result.detail or 'nothing was said'})"
                raise BadInput.at(str(place), problem, "see its log.txt, and change the settings")
        fold_of_box = folds[table.image_index[data.rough.chosen]]
        places = [folder / run.name for run in study.runs()]
        said = judged_by(places, fold_of_box, data)
        numbers = {name: at for at, name in enumerate(dict.fromkeys(groups))}
        clusters = torch.tensor([numbers[name] for name in groups])[table.image_index]
        chosen = data.rough.chosen
        sizes = table.sizes[table.image_index[chosen]]
        classes = [table.classes[label] for label in table.labels[chosen].tolist()]
        audited = Audited(
            data.rough,
            judge(said, table.boxes[chosen], sizes, clusters[chosen], classes, own.overlap),
            fold_of_box.tolist(),
            "pictures" if len(numbers) == len(table.images) else "groups",
        )
        text = write_audit(audited, data, folder, record, own.apply, own.review)
    say(f"\n{text}")


def audit_parser() -> CommandParser:
    """Return what reads the options of `audit` alone."""
    parser = CommandParser(
        "audit",
        "Say which annotated boxes are wrong: every box is judged by a model that has "
        "seen neither its picture nor its group. The files' own splits play no part. All options "
        "that aren't here are those of fit, and go to the training of every fold; unless they say "
        "otherwise, models learn four targets, averaged over flips, on boxes off by up to "
        f"{WIDE['data.jitter.shift']} px and {WIDE['data.jitter.log_scale']} in log size.",
        config="a configuration of fit, or preset:NAME",
        name="audit-ROOT",
    )
    parser.add_argument("--folds", type=int, default=5, help="how many models share the pictures")
    parser.add_argument("--jobs", type=int, help="trainings side by side; as compare by default")
    parser.add_argument(
        "--overlap",
        type=float,
        default=OVERLAP,
        help=f"a box is wrong where its IoU with the truth is below this; {OVERLAP:g} by default",
    )
    parser.add_argument(
        "--apply",
        action="store_true",
        help="write copies of the annotation files too, where the boxes that are likelier wrong "
        "than right have moved; yours stay as they are",
    )
    parser.add_argument(
        "--review",
        type=int,
        default=MOST_REVIEWED,
        help=f"how many boxes review.html may have, the worst; {MOST_REVIEWED} by default, some 6 "
        "kB each, 0 for no page",
    )
    return parser


def study_of(folds: int, configs: Sequence[str], asked: Settings) -> Study:
    """Return the trainings of an audit as a study with an arm a fold.

    Args:
        folds: How many there are.
        configs: Configurations for all.
        asked: The settings that a fit would have; what they leave open is set as audits need it.
    """
    arms = tuple(Arm(f"fold{fold}", options=_left_out(fold, folds)) for fold in range(folds))
    defaults = {} if _has(asked, "data.jitter") else dict(WIDE)
    defaults |= {name: value for name, value in _BESIDES.items() if not _has(asked, name)}
    return Study("audit", arms, configs=tuple(configs), options=defaults, seeds=(0,))


def _has(settings: Settings, name: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in settings)


def _left_out(fold: int, folds: int) -> Options:
    """Return the options by which a model learns from all pictures but those of a fold."""
    options: Options = {"stated": False, "test_fraction": 1 / folds, "test_fold": fold, "fold": 0}
    options |= {name: [] for name in ("train", "val", "test", "test_groups")}  # as configs may name
    return {f"data.splits.{name}": value for name, value in options.items()}


def folds_of(groups: Sequence[str], folds: int, seed: int) -> Int64[Tensor, " n"]:
    """Return the fold of each picture: which model has seen neither it nor its group.

    Args:
        groups: The group of each picture.
        folds: How many folds there are.
        seed: Seed of the shares.

    Raises:
        BadInput: There are too few groups.

    Examples:
        >>> folds_of(["a", "a", "b", "c"], 3, seed=0).unique().tolist()
        [0, 1, 2]
    """
    if (count := len(set(groups))) < max(folds, 3):
        msg = f"{count} pictures or groups are too few for {folds} folds; set --folds lower"
        if count < 3:
            msg = f"{count} pictures or groups are too few to learn from some and judge others"
        raise BadInput(msg)
    places = torch.full((len(groups),), -1)
    for fold in range(folds):
        places[split_pictures(groups, 1 / folds, seed, fold)[1]] = fold
    return places


def _groups(table: BoxTable, pattern: str | None) -> tuple[str, ...]:
    return table.groups if pattern is None else groups_in(table.images, pattern)


def _record(folder: Path, table: BoxTable, folds: int) -> dict[str, object]:
    """Note which annotations and pictures a folder's audit is of; refuse to go on with others.

    Raises:
        BadInput: Its folds were trained on others, or the note can't be read.
    """
    record: dict[str, object] = {
        "annotations": _hash_of(table.files, table.root),
        "pictures": _hash_of(table.images, table.root),
        "folds": folds,
    }
    path = folder / RECORD
    if path.is_file():
        try:
            then = json.loads(path.read_bytes())
            then = {"pictures": record["pictures"]} | then  # older ones don't say which
            same = {name: then[name] for name in record} == record
        except (ValueError, TypeError, KeyError) as error:
            problem, remedy = "isn't what an audit writes", "remove it, or choose another --name"
            raise BadInput.at(str(path), problem, remedy) from error
        if not same:
            problem = "is of other annotations, pictures or folds than those at hand"
            raise BadInput.at(str(folder), problem, "choose another --name, or remove the folder")
    elif any(folder.glob("fold*-seed*")):
        problem = f"has models of an audit, but no {RECORD} that says of which annotations"
        raise BadInput.at(str(folder), problem, "choose another --name, or remove the folder")
    else:
        write_atomically(path, json.dumps(record, indent=2).encode())
    return record


def _hash_of(files: Sequence[str], root: Path) -> str:
    """Return what tells files below a folder, by names and contents, from any others."""
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(encoded(file) + b"\0")
        if (root / file).is_file():  # pictures may be missing
            with (root / file).open("rb") as stream:
                for part in iter(partial(stream.read, 1 << 20), b""):
                    hashed.update(part)
    return hashed.hexdigest()


@torch.no_grad()
def judged_by(folders: Sequence[Path], folds: Int64[Tensor, " n"], data: BoxDataModule) -> Said:
    """Return what the model of each box's own fold says of it.

    Args:
        folders: The runs of the folds.
        folds: The fold of each box that is judged.
        data: A data module that has read the boxes.
    """
    parts, places = [], []
    for fold, folder in enumerate(folders):
        rows = (folds == fold).nonzero().flatten()
        if len(rows):
            model = OffsetModel.load_from_checkpoint(folder, map_location=_device())
            parts.append(_said_by(model, rows, data))
            places.append(rows)
    said, order = pooled(parts), torch.cat(places).argsort()
    return said._replace(offsets=said.offsets[order], stds=said.stds[order])


def _said_by(model: OffsetModel, rows: Int64[Tensor, " n"], data: BoxDataModule) -> Said:
    """Return what a model says of some of the boxes that were read."""
    assert model.spec is not None
    assert data.rough is not None
    data.follow(model.spec, needs_class=model.net.head.per_class)
    samples, found = data.samples("predict"), []
    for some in torch.split(rows, data.batch_size):
        batch = samples.take(some).to(model.device)
        these = Rows("predict", 0, some.to(model.device), torch.ones_like(some, dtype=torch.bool))
        cut = partial(data.crops_again, these)
        moved = model.refine(data.crops_of(batch), batch.proposals, batch.labels, cut)
        found.append([part.cpu() for part in moved])
    boxes, stds = (torch.cat(column) for column in zip(*found, strict=True))
    at = data.rough.chosen[rows]
    table, geometry = data.rough.table, data.geometry
    told = boxes, stds, table.boxes[at], table.sizes[table.image_index[at]]
    return said_inside(*told, geometry, _without_tails(model.reliability))


def _without_tails(reliability: Reliability | None) -> Reliability | None:
    """Keep bias and slope alone of how a model errs.

    Where it was measured, annotations are as wrong as those that are judged: what it seems to err
    by far is what is looked for.
    """
    if reliability is None:
        return None
    return replace(reliability, factors=(1.0,) * len(reliability.factors), tails=NORMAL)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
