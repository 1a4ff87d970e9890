"""Diagnose three recipes that don't learn, and take a picture of each page.

    python -m benchmarks.diagnose --data FOLDER [--minutes 5] [--only NAME ...]

FOLDER holds the data set bccd. The recipes are the question's own (`configs/naive.yaml`) on its red
cells, the default with global pooling and one convolution on drawn scenes, and bins that don't
reach as far as the shifts. Each leaves `results/diagnosis-NAME.png` and its figures in
`results/diagnosis.json`. Needs a chromium.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_bbox.cli.main import main as lightning_bbox

RESULTS = Path(__file__).parent / "results"
SCENES = ("-c", "preset:quickstart")
RECIPES = {
    "naive": ("-c", "preset:naive", "--data.root={data}/bccd"),
    "pooled": (
        *SCENES,
        "--model.backbone=ShallowConvNet",
        "--model.backbone.channels=[32]",
        "--model.backbone.global_pool=true",
    ),
    "narrow": (*SCENES, "--model.head=BinHead", "--model.head.max_shift=2"),
}
"""What is diagnosed, by name."""


def diagnosis_of(name: str, data: Path, minutes: float) -> dict[str, Any]:
    """Diagnose a recipe, take a picture of its page, and return its figures.

    Args:
        name: Of the recipe.
        data: Where the data sets lie.
        minutes: For trying cures.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [word.format(data=data) for word in RECIPES[name]]
        words += [f"--minutes={minutes}", f"--runs={folder}", "--name=run"]
        code = lightning_bbox(["diagnose", *words])
        if code not in (0, 3):
            sys.exit(code)
        run = Path(folder) / "run"
        take_picture(run / "diagnosis.html", RESULTS / f"diagnosis-{name}.png")
        told: dict[str, Any] = json.loads((run / "diagnosis.json").read_text())
    return told


def take_picture(page: Path, picture: Path, browser: str = "chromium") -> None:
    """Take a picture of what a page shows without scrolling.

    Args:
        page: The page.
        picture: Where to.
        browser: A chromium.
    """
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars"]
    command += ["--window-size=1200,760", f"--screenshot={picture}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    with Image.open(picture) as shot:
        shot.convert("RGB").quantize(128).save(picture, optimize=True)


def main(args: Sequence[str] | None = None) -> int:
    """Diagnose what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diagnose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="where the data sets lie")
    parser.add_argument("--minutes", type=float, default=5.0, help="for trying cures")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    own = parser.parse_args(args)
    file = RESULTS / "diagnosis.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in own.only:
        found[name] = diagnosis_of(name, own.data, own.minutes)
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {found[name]['sentence']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
