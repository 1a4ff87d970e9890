"""Review boxes in a browser by a script, apply the decisions, and compare files with them.

    python -m benchmarks.review PAGE [--boxes 200] [--picture review.png]

PAGE is the `review.html` of a `predict` or an `audit`. Of each four boxes one is accepted by key,
one rejected by a click, one has an edge dragged, and one an edge moved by keys. The data set is
then copied, its annotations exchanged for the applied ones, read again, and compared box by box.
Needs PyPI's playwright and a chromium. `results/review.json` has the lines that were printed.
"""

import argparse
import io
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from lightning_bbox.cli.main import main as lightning_bbox
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.options import Reading


def main(args: list[str] | None = None) -> int:
    """Review, apply, compare."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.review",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("page", type=Path, help="a review.html")
    parser.add_argument("--boxes", type=int, default=200)
    parser.add_argument("--browser", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--picture", type=Path, help="where to leave a picture of the page")
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    own = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        decided = Path(folder) / "decisions.json"
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=own.browser, args=["--no-sandbox"])
            page = browser.new_page(
                color_scheme="dark" if own.dark else "light",
                viewport={"width": 1200, "height": 780},
            )
            begun = time.perf_counter()
            page.goto(own.page.resolve().as_uri())
            page.wait_for_selector(".box")
            opened = time.perf_counter() - begun
            begun = time.perf_counter()
            for number in range(own.boxes):
                decide(page, number)
            with page.expect_download() as saved:
                page.click("#export")
            reviewed = time.perf_counter() - begun
            saved.value.save_as(decided)
            if own.picture:
                page.evaluate("scrollTo(0, 0)")
                shot = Image.open(io.BytesIO(page.screenshot()))
                shot.quantize(128).save(own.picture, optimize=True)
            heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
            browser.close()
        kind, differences = applied(decided, Path(folder))
    told = {"megabytes": own.page.stat().st_size / 1e6, "opened_s": opened, "heap_mb": heap}
    told |= {"boxes": own.boxes, "reviewed_s": reviewed, "largest_difference": differences}
    print(json.dumps({name: round(value, 3) for name, value in told.items()} | {"decided": kind}))
    return 0


def decide(page: Page, number: int) -> None:
    """Decide on the box at hand by the means that is its turn, and go to the next."""
    means = number % 4
    if means == 0:
        page.keyboard.press("a")
    elif means == 1:
        page.click("#reject")
    elif means == 2:
        place = page.locator("[data-side='2'] .hit").bounding_box()
        assert place is not None
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 15, y, steps=3)
        page.mouse.up()
        for key in ("Escape", "ArrowRight"):
            page.keyboard.press(key)
    else:
        for key in ("e", "e", "Shift+ArrowUp", "Escape", "ArrowRight"):
            page.keyboard.press(key)


def applied(decided: Path, folder: Path) -> tuple[dict[str, int], float]:
    """Apply decisions, read the files again, and return the largest difference from them."""
    content = json.loads(decided.read_text())
    assert lightning_bbox(["apply", str(decided), f"--runs={folder}", "--name=applied"]) == 0
    copy = folder / "data"
    shutil.copytree(content["root"], copy, copy_function=shutil.copyfile)
    for path in (folder / "applied" / "refined").rglob("*"):
        if path.is_file():
            shutil.copyfile(path, copy / path.relative_to(folder / "applied" / "refined"))
    table = BoxDataModule(
        str(copy), reading=Reading(**content["reading"]), proposals=content["proposals"]
    ).rough_table()
    found = dict(zip(table.ids, table.boxes, strict=True))
    counts: dict[str, int] = {}
    largest = 0.0
    for box in content["boxes"]:
        word = box["decision"]
        counts[word] = counts.get(word, 0) + 1
        expected = torch.tensor(box[{"accept": "new", "edit": "box"}.get(word, "old")])
        largest = max(largest, float((found[box["id"]] - expected).abs().max()))
    return counts, largest


if __name__ == "__main__":
    raise SystemExit(main())
