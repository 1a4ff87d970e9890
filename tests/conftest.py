"""What several tests share: the real data, where it is, and small data made on the spot."""

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from lightning.pytorch.callbacks.model_checkpoint import warning_cache
from PIL import Image

from lightning_bbox.cli.main import main

# Two busy cores: a deadline would measure the neighbours.
settings.register_profile("shared", deadline=None)
settings.register_profile("campaign", deadline=None, max_examples=20_000)
settings.load_profile("shared")

ROOT = Path(__file__).parent.parent
WEIGHTS = Path(os.environ.get("LIGHTNING_BBOX_WEIGHTS", ROOT.parent / "shared" / "weights"))
DATA = Path(os.environ.get("LIGHTNING_BBOX_DATA", ROOT.parent / "shared" / "data"))

PRECISIONS = ("bf16-mixed", "32-true")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the suite run as on a machine of the other kind."""
    parser.addoption("--precision", choices=PRECISIONS, help="of runs that name none")


def pytest_configure(config: pytest.Config) -> None:
    """Have every run of the suite take that precision, those in other processes too."""
    if precision := config.getoption("--precision"):
        os.environ["LIGHTNING_BBOX_PRECISION"] = precision


collect_ignore = ["fixtures"]  # scripts in there are run with older code


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets."""
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}; set LIGHTNING_BBOX_DATA")
    return DATA


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder of pretrained weights."""
    if not WEIGHTS.is_dir():
        pytest.skip(f"no weights in {WEIGHTS}; set LIGHTNING_BBOX_WEIGHTS")
    return WEIGHTS


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two workers on two cores; one thread gives the same bits in fixtures and in tests."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    """Go back to one thread after a test that took more."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let SIGINT interrupt, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def interruptible_again() -> Iterator[None]:
    """Let SIGINT interrupt again after Lightning, which ignores it once it came."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def warned_anew() -> None:
    """Lightning warns of a missing metric once a process: have each test hear it."""
    warning_cache.clear()


@pytest.fixture
def exporting() -> Iterator[None]:
    """Collect what an export leaves: classes of the names of ours, which a command would find."""
    yield
    gc.collect()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[str]], str]:
    """Return a function that runs a command which is refused, and returns its one sentence."""

    def sentence_of(command: Sequence[str]) -> str:
        capsys.readouterr()
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lightning-bbox: ")
        return line.removeprefix("lightning-bbox: ")

    return sentence_of


@pytest.fixture
def csv_folder(tmp_path: Path) -> Path:
    """Twelve pictures with three bright rectangles each, in CSV."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_rectangles(folder)
    return folder


def write_rectangles(folder: Path) -> None:
    """Write twelve pictures with three bright rectangles each, and a CSV of their boxes."""
    random = np.random.default_rng(0)
    lines = ["image,xmin,ymin,xmax,ymax,label"]
    for index in range(12):
        picture = random.integers(0, 90, (80, 120, 3), dtype=np.uint8)
        for place in range(3):
            width, height = random.integers(14, 24, 2)
            x, y = 40 * place + random.integers(4, 12), random.integers(10, 45)
            picture[y : y + height, x : x + width] += 120
            lines.append(f"{index}.png,{x},{y},{x + width},{y + height},part")
        Image.fromarray(picture).save(folder / f"{index}.png")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")


def yolo_folder(csv_folder: Path) -> None:
    """Write the CSV's boxes a second time, as YOLO labels beside the pictures."""
    lines = (csv_folder / "boxes.csv").read_text().splitlines()[1:]
    (csv_folder / "boxes.csv").unlink()
    for line in lines:
        name, *corners, _ = line.split(",")
        x1, y1, x2, y2 = map(float, corners)
        box = [(x1 + x2) / 240, (y1 + y2) / 160, (x2 - x1) / 120, (y2 - y1) / 80]
        with (csv_folder / name).with_suffix(".txt").open("a") as file:
            file.write(" ".join(["0", *map(str, box)]) + "\n")
