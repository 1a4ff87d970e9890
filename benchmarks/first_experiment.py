"""The question's first experiment, answered: was it the pooling, the solver, the 227 pixels?

    python -m benchmarks.first_experiment --data FOLDER --weights FOLDER [--runs runs] [--parts ...]

FOLDER holds `bccd` and `deeppcb`; the weights are Caffe's conv1 to conv5. Three parts, each a few
commands of `lightning-bbox`, skipped where their run is there already:

- `layers`: an exact ridge on every layer of Caffe's AlexNet at 227 px, the map of pool5 averaged
  over space after it, beside random weights and shuffled targets; DeepPCB split by picture and by
  board, and BCCD.
- `sizes`: pool5 of the same crops at fewer pixels, where its map shrinks to one place.
- `solvers`: on BCCD the exact solution and SGD, on fc6 with random weights and on Caffe's pool5.

What was found goes to `benchmarks/results/first_experiment.json` and, as tables, to stdout and
`first_experiment.md`.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.protocol import error_of
from benchmarks.ranks import machine
from lightning_bbox import AlexNet
from lightning_bbox.cli.main import main as run

RESULTS = Path(__file__).parent / "results"
CAFFE = ["--model.backbone.layout=caffe", "--model.backbone.weights=caffe"]
PICTURES = "DeepPCB, split by picture"
DATA = {
    # The groups are boards; here every picture is its own, and boards lie on both sides.
    PICTURES: [
        "deeppcb", "--data.splits.test_groups=null", "--data.splits.group_pattern=(.+)",
        "--data.splits.train=trainval", "--data.splits.test=test",
    ],
    "DeepPCB, unseen boards": ["deeppcb"],
    "BCCD": ["bccd"],
}  # fmt: skip
SIZES = (67, 131, 227)
PROTOCOL = [
    "--data.classes=[RBC]", "--data.min_size=20", "--data.batch_size=256",
    "--data.splits.train=ImageSets/Main/trainval.txt", "--data.splits.test=ImageSets/Main/test.txt",
]  # fmt: skip
SGD = ["--trainer.max_epochs=10", "--model.schedule=Constant"]
DECAY = "2 lambda / n"
"""Stands for the weight decay that has the exact solution's lambda: the loss has no half."""
SOLVERS = {
    "exact": ("alexnet_fc6_ridge", []),
    "SGD, standardised, rate 0.001": ("alexnet_fc6_sgd", [*SGD, "--model.optimizer.lr=0.001"]),
    "the same with the ridge as weight decay": (
        "alexnet_fc6_sgd",
        [*SGD, "--model.optimizer.lr=0.001", f"--model.optimizer.weight_decay={DECAY}"],
    ),
    "SGD, as they are, rate 0.01": (
        "alexnet_fc6_sgd",
        [*SGD, "--model.optimizer.lr=0.01", "--model.head.standardize=false"],
    ),
    "SGD, as they are, rate 0.0001": (
        "alexnet_fc6_sgd",
        [*SGD, "--model.optimizer.lr=0.0001", "--model.head.standardize=false"],
    ),
}
FEATURES = {
    "fc6, random weights": ([], 0.169),  # lambda 1,683, by the exact arm
    "pool5, Caffe's weights": (["--model.backbone.layer=pool5", *CAFFE], 1.75),  # 17,440
}
"""What reads them, and the weight decay that is 2 lambda / n for the 19,968 draws."""


class PooledAlexNet(AlexNet):
    """AlexNet with its last map averaged over space."""

    def build(self, crop_size: int) -> "PooledAlexNet":
        """Make the layers, and the pooling after them."""
        super().build(crop_size)
        self.add_module("global pooling", nn.AdaptiveAvgPool2d(1))
        self.layer_names = {**self.layer_names, "global pooling": "global pooling"}
        self.out_features, self.map_shape = self._width(crop_size) or 0, None
        return self


def main(args: list[str] | None = None) -> int:
    """Run what isn't there yet, and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_experiment")
    parser.add_argument("--data", type=Path, required=True, help="holds bccd and deeppcb")
    parser.add_argument("--weights", required=True, help="holds alexnet_caffe_conv_int8.npz")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--parts", nargs="+", default=["layers", "sizes", "solvers"])
    options = parser.parse_args(args)
    os.environ["LIGHTNING_BBOX_WEIGHTS"] = options.weights
    parts = {"layers": layers, "sizes": sizes, "solvers": solvers}
    found: dict[str, Any] = {"machine": machine()}
    for name in options.parts:
        found[name] = parts[name](options.data, options.runs)
    RESULTS.mkdir(exist_ok=True)
    text = as_markdown(found)
    (RESULTS / "first_experiment.json").write_text(json.dumps(found) + "\n")
    (RESULTS / "first_experiment.md").write_text(text)
    print(text)
    return 0


def probe(name: str, size: int, data: Path, runs: Path, backbone: str) -> dict[str, Any]:
    """Probe Caffe's AlexNet on one data set, once."""
    preset, *split = DATA[name]
    folder = runs / f"probe-{'-'.join(name.lower().replace(',', '').split())}-{size}"
    if not (folder / "probe.json").exists():
        command = ["probe", "-c", f"preset:{preset}", f"--data.root={data / preset}", *split]
        command += [f"--data.crop.size={size}", f"--model.backbone={backbone}", *CAFFE]
        command += ["--model.backbone.layer=pool5", f"--runs={runs}", f"--name={folder.name}"]
        assert run(command) == 0, folder
    found: dict[str, Any] = json.loads((folder / "probe.json").read_text())
    return found


def layers(data: Path, runs: Path) -> dict[str, Any]:
    """Read every layer at 227 px."""
    return {
        name: probe(name, 227, data, runs, "benchmarks.first_experiment.PooledAlexNet")
        for name in DATA
    }


def sizes(data: Path, runs: Path) -> dict[str, Any]:
    """Read pool5 at fewer pixels."""
    found = {}
    for name in (PICTURES, "BCCD"):
        for size in SIZES:
            there = probe(name, size, data, runs, "benchmarks.first_experiment.PooledAlexNet")
            found[f"{name}, {size} px"] = next(
                layer for layer in there["layers"] if layer["layer"] == "pool5"
            )
    return found


def solvers(data: Path, runs: Path) -> dict[str, Any]:
    """Learn from the same features exactly and by descent."""
    found = {}
    for features, (layer, decay) in FEATURES.items():
        cache = runs / f"features-{features.partition(',')[0]}"
        for solver, (preset, settings) in SOLVERS.items():
            folder = runs / f"solver-{features.partition(',')[0]}-{slug(solver)}"
            if not (folder / "outcome.json").exists():
                command = ["fit", "-c", f"preset:{preset}", f"--data.root={data / 'bccd'}"]
                own = [setting.replace(DECAY, str(decay)) for setting in settings]
                command += [*PROTOCOL, *layer, *own, f"--model.cache={cache}"]
                code = run([*command, f"--runs={runs}", f"--name={folder.name}"])
                assert code in (0, 1), folder  # 1: diverged
                metrics = folder / "metrics.json"
                outcome = json.loads(metrics.read_text()) if code == 0 else {}
                folder.mkdir(exist_ok=True)
                (folder / "outcome.json").write_text(json.dumps(outcome))
            found[f"{features}: {solver}"] = json.loads((folder / "outcome.json").read_text())
    return found


def slug(words: str) -> str:
    """Make a folder's name of words."""
    return "".join(letter if letter.isalnum() else "-" for letter in words)


def as_markdown(found: dict[str, Any]) -> str:
    """Return the tables of all parts that were run."""
    lines: list[str] = []
    if "layers" in found:
        names = list(found["layers"])
        heads = [f"{name}: R2 (random weights)" for name in names]
        lines += [f"| layer | {' | '.join(heads)} |", f"|---|{'---|' * len(names)}"]
        for place, layer in enumerate(found["layers"][names[0]]["layers"]):
            cells = [reading(found["layers"][name]["layers"][place]) for name in names]
            lines.append(f"| {layer['layer']} | {' | '.join(cells)} |")
    if "sizes" in found:
        lines += ["", "| crops | numbers of pool5 | R2 (random weights) | error, px |"]
        lines.append("|---|---|---|---|")
        for name, layer in found["sizes"].items():
            error = layer["net"]["mae_px"]["value"]
            lines.append(f"| {name} | {layer['size']} | {reading(layer)} | {error:.2f} |")
    if "solvers" in found:
        lines += ["", "| features of BCCD, and solver | error, px |", "|---|---|"]
        for name, outcome in found["solvers"].items():
            error = error_of(outcome, digits=2) if outcome else "diverged"
            lines.append(f"| {name} | {error} |")
    return "\n".join([*lines, ""]).lstrip("\n")


def reading(layer: dict[str, Any]) -> str:
    """Return a layer's R2, with its interval and that of random weights."""
    r2 = layer["net"]["r2"]
    told = f"{r2['value']:.2f} [{r2['low']:.2f}, {r2['high']:.2f}]"
    random = layer.get("random")
    return f"{told} ({random['r2']['value']:.2f})" if random else told


if __name__ == "__main__":
    raise SystemExit(main())
