"""A run's card: what its model was trained on, what it reaches, whom it harms, and how to load it.

Every figure is one that the run left in its files; what it didn't leave is said to be missing.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Plain, flatten
from lightning_bbox.evaluation.intervals import TOO_FEW
from lightning_bbox.evaluation.metrics import BESIDE_THE_MEAN
from lightning_bbox.geometry.codecs import OffsetSpec
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.models.checkpoints import (
    checkpoint_of,
    read_checkpoint,
    read_measured,
    read_spec,
    recipe_in,
)
from lightning_bbox.nn.calibration import LEVELS
from lightning_bbox.reports.tables import format_markdown

PICTURES = {
    "crops.png": "The worst test crops, then some at random: red the rough box, green the truth, "
    "blue the prediction",
    "data.png": "Training crops as the model sees them",
}
"""Pictures that a run leaves, and what they show."""

_WHAT = (
    "Moves a rough box onto its object by a few pixels, from the picture alone. Made by "
    "lightning_bbox."
)
_ROLES = {"train": "training", "val": "validation", "test": "test"}
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")  # as the Hugging Face hub writes them


@dataclass(frozen=True)
class RunFacts:
    """What a run's files say of its model.

    Args:
        name: Name of the run.
        metrics: Its `metrics.json`.
        spec: What the model knows of its data.
        recipe: What the model is made of.
        law: The law that it has for few boxes; None where it has none.
        pictures: Those of `PICTURES` that are there.
    """

    name: str
    metrics: Mapping[str, Any]
    spec: OffsetSpec
    recipe: Mapping[str, Plain]
    law: DisplacementLaw | None
    pictures: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> "RunFacts":
        """Read the files of a run.

        Args:
            folder: The run's.

        Raises:
            BadInput: It is no run's folder, the run wasn't tested, or a file can't be read.
        """
        if not folder.is_dir():
            raise BadInput.at(str(folder), "is no folder", "name that of a run")
        checkpoint = read_checkpoint(checkpoint_of(folder))
        path = folder / "metrics.json"
        if not path.is_file():
            problem = "has no metrics.json, so nothing is known of what its model reaches"
            remedy = f"let the run end, by lightning-bbox fit --resume {folder}"
            raise BadInput.at(str(folder), problem, remedy)
        try:
            metrics = json.loads(path.read_bytes())
            metrics["test/mae_px"], metrics["test/rows"]
        except OSError as error:
            raise BadInput.unreadable(str(path), error) from error
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput.at(str(path), "isn't what a test wrote", "test the run again") from error
        return cls(
            folder.resolve().name,
            metrics,
            read_spec(checkpoint),
            recipe_in(checkpoint),
            read_measured(checkpoint)[1],
            tuple(name for name in PICTURES if (folder / name).is_file()),
        )

    @property
    def data_name(self) -> str:
        """The name of the data: of their folder or file alone, as paths are nobody's business."""
        settings = self.metrics.get("settings", {})
        for key in ("data.root", "data.file"):
            if key in settings:
                return Path(str(settings[key])).stem
        return str(settings.get("data", "data"))

    def figure(self, name: str) -> float | None:
        """Return a figure of the test, None where it wasn't measured."""
        value = self.metrics.get(f"test/{name}")
        return float(value) if isinstance(value, int | float) else None


def card_of(facts: RunFacts, title: str | None, licence: str | None, shared: bool) -> str:
    """Compose a run's card: Markdown with a head in YAML, as the Hugging Face hub reads it.

    Args:
        facts: What is known of the run.
        title: What the model is called; as its run by default.
        licence: Under which terms it may be used, by the hub's word for it or in your own.
        shared: Whether it stands beside the weights in a folder of a shared model.
    """
    name = title or facts.name
    sections = [
        f"# {name}",
        _WHAT,
        *(f"![{PICTURES[each]}.]({each})\n\n*{PICTURES[each]}.*" for each in facts.pictures),
        "## How to load it",
        _loading(facts, shared),
        "## What it was trained on",
        *_data(facts),
        "## What it reaches",
        *_reached(facts),
        "## Whom it harms",
        _harm(facts.metrics.get("test/harm", [])),
        "## How well its doubts hold",
        _doubts(facts),
        "## Limits",
        _listed(_limits(facts)),
        "## What it is made of",
        _listed(_parts(facts)),
        "## Licence",
        licence or "Not stated: ask whoever gave you the model.",
    ]
    return f"---\n{_head(facts, name, licence)}---\n\n" + "\n\n".join(sections) + "\n"


def _head(facts: RunFacts, name: str, licence: str | None) -> str:
    """Write the head: what machines read."""
    said: dict[str, Any] = {"library_name": "lightning_bbox"}
    if licence and _LICENCE_ID.fullmatch(licence):
        said["license"] = licence
    elif licence:
        said |= {"license": "other", "license_name": licence}
    said["tags"] = ["bounding-box-refinement", "object-localization"]
    said["metrics"] = ["mae", "iou"]
    kinds = {"mae_px": "mae", "iou_after": "iou"}
    metrics = [
        {"type": kind, "name": _words(each, facts), "value": round(value, 4)}
        for each, kind in kinds.items()
        if (value := facts.figure(each)) is not None
    ]
    data = {"type": facts.data_name, "name": facts.data_name, "split": "test"}
    task = {"type": "object-detection", "name": "bounding box refinement"}
    said["model-index"] = [
        {"name": name, "results": [{"task": task, "dataset": data, "metrics": metrics}]}
    ]
    return str(yaml.safe_dump(said, sort_keys=False, allow_unicode=True))


def _loading(facts: RunFacts, shared: bool) -> str:
    call = "from_pretrained" if shared else ""
    what = "the folder of this card, or its id on the Hugging Face hub" if shared else "this run"
    dot = "." if call else ""
    arguments = flatten({"head": facts.recipe.get("head")})
    labels = ", labels" if arguments.get("head.per_class") else ""
    lines = [
        "```python",
        "from lightning_bbox import Refiner",
        "",
        f"refiner = Refiner{dot}{call}({json.dumps(facts.name)})  # {what}",
        f"boxes = refiner.refine(image, rough_boxes{labels})  # xyxy in pixels of the picture",
        "```",
    ]
    if shared:
        lines.append("\nThe weights are in safetensors and the recipe in JSON: neither holds code.")
    return "\n".join(lines)


def _data(facts: RunFacts) -> Iterator[str]:
    counts = facts.metrics.get("data")
    if not isinstance(counts, dict):
        yield (
            f"{facts.data_name}. How many pictures and boxes there were isn't told: the run was "
            "tested before this was recorded."
        )
        law = None
    else:
        classes = sorted({name for role in _ROLES for name in counts[role]["classes"]})
        rows = [[facts.data_name, "pictures", "groups", "boxes", "left out", *classes]]
        for role, words in _ROLES.items():
            numbers = [counts[role][key] for key in ("pictures", "groups", "boxes", "skipped")]
            numbers += [counts[role]["classes"].get(name, 0) for name in classes]
            rows.append([words, *(f"{number:,}" for number in numbers)])
        yield format_markdown(rows)
        law = counts["proposals"]
    geometry, spec = facts.spec.geometry, facts.spec
    sides = "the longer side of the box" if geometry.square else "the box"
    told = [f"The law of its rough boxes: `{law}`."] if law else []
    told.append(
        f"These were off by up to {_shift(spec)}; the model moves the centre"
        + (" and changes the size." if spec.num_targets == 4 else ", and keeps the size.")
    )
    told.append(
        f"It sees {geometry.size} x {geometry.size} pixels, cut {geometry.context:g} times as "
        f"large as {sides}. A px is 1/{geometry.px_per_delta:g} of {sides}."
    )
    if facts.law is not None:
        told.append(f"Few boxes are taken to be off like this: {facts.law.words()}.")
    yield _listed(told)


def _shift(spec: OffsetSpec) -> str:
    share = spec.max_shift / spec.geometry.px_per_delta
    return f"{spec.max_shift:.3g} px, {100 * share:.3g} % of the box"


def _reached(facts: RunFacts) -> Iterator[str]:
    rows = [["on the test", "model", "predict the mean"]]
    for name in BESIDE_THE_MEAN:
        if (value := facts.figure(name)) is not None:
            mean = facts.figure(f"{name}_predict_mean")
            rows.append(
                [_words(name, facts), f"{value:.3f}", "-" if mean is None else f"{mean:.3f}"]
            )
    yield format_markdown(rows)
    yield _interval(facts)
    parts = [["part of the test", "draws", "error of the centre, px"]]
    parts += [
        [f"{row['kind']} {row['name']}", f"{row['draws']:,}", f"{row['mae_px']:.3f}"]
        for row in facts.metrics["test/rows"]
    ]
    if len(parts) > 1:
        yield format_markdown(parts)


def _words(name: str, facts: RunFacts) -> str:
    before = facts.figure("iou_before")
    known = {"iou_before": math.nan if before is None else before}
    return BESIDE_THE_MEAN[name].replace("  ", "error ").format_map(known)


def _interval(facts: RunFacts) -> str:
    groups, low, high = (facts.figure(key) for key in ("groups", "mae_px_low", "mae_px_high"))
    what = "pictures" if groups == facts.figure("pictures") else "groups"
    over = "" if groups is None else f" over {groups:.0f} {what} of the test"
    if low is None or high is None:
        return f"95 % interval of the error of the centre{over}: {TOO_FEW}."
    return (
        f"95 % interval of the error of the centre{over}: {low:.3f} to {high:.3f} px. It is of the "
        "data, not of the training: another seed gives another model."
    )


def _harm(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "Not measured."
    lawful = any(row.get("iou_law") is not None for row in rows)
    names = ["iou_before", "iou_after", "harmed", *["iou_law", "harmed_law"] * lawful]
    head = ["boxes that are", "IoU before", "after", "made worse"]
    head += ["by its law", "made worse"] * lawful
    table = [head]
    table += [[row["name"], *(_number(row.get(name)) for name in names)] for row in rows]
    text = format_markdown(table)
    if lawful:
        text += (
            "\n\n`Refiner` moves boxes by the model's law unless it is told otherwise: most of the "
            "right ones stay."
        )
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _doubts(facts: RunFacts) -> str:
    held = [facts.figure(f"coverage_{100 * level:.0f}") for level in LEVELS]
    rows = [["intervals of", "hold"]]
    for level, share in zip(LEVELS, held, strict=True):
        if share is None:
            return "The model tells no standard deviations."
        rows.append([f"{100 * level:.0f} %", f"{100 * share:.1f} %"])
    std, nll = facts.figure("std_px"), facts.figure("nll")
    told = [f"mean standard deviation {std:.3f} px"] * (std is not None)
    told += [f"negative log-likelihood {nll:.3f}"] * (nll is not None and math.isfinite(nll))
    return f"{format_markdown(rows)}\n\nOn the test: {', '.join(told)}."


def _limits(facts: RunFacts) -> Iterator[str]:
    """Yield what nobody should expect of the model, as far as its own figures tell."""
    yield "Boxes are axis-parallel; what is turned needs another tool."
    yield (
        f"It knows boxes that are off by up to {_shift(facts.spec)}. One that is farther off may "
        "be moved to something else."
    )
    classes = ", ".join(facts.spec.classes)
    yield f"It was trained and tested on {facts.data_name} alone (classes: {classes})."
    yield "Errors that the annotations of its training have in common are learned along."
    harmed = facts.figure("harmed")
    if harmed is not None:
        yield f"It made {100 * harmed:.1f} % of the test's rough boxes worse."
    rows = facts.metrics["test/rows"]
    if len(rows) > 1:
        worst = max(rows, key=lambda row: float(row["mae_px"]))
        yield (
            f"Worst of the test's parts: {worst['kind']} {worst['name']}, {worst['mae_px']:.3f} px."
        )
    if facts.figure("mae_px_low") is None:
        yield "Its test has too few pictures or groups for an interval."


def _parts(facts: RunFacts) -> Iterator[str]:
    """Yield the parts of the model with the arguments that they were made with."""
    for name, part in facts.recipe.items():
        if isinstance(part, dict):
            path = str(part.get("class_path", "")).removeprefix("lightning_bbox.")
            given = flatten(part.get("init_args") or {})
            said = ", ".join(f"{key}={value}" for key, value in given.items())
            yield f"{name}: `{path}({said})`"
        elif part:
            yield f"{name}: {part}"
    steps, seconds = facts.metrics.get("train_steps"), facts.metrics.get("train_seconds")
    if steps is not None and seconds is not None:
        yield f"trained for {steps:,} steps, {seconds / 60:.1f} minutes"


def _listed(sentences: Sequence[str] | Iterator[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
