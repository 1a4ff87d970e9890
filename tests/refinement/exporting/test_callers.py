"""Exported models are run without Python, by the examples of the docs."""

import json
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import Refiner
from lightning_bbox.core.compiling import has_cxx_compiler
from lightning_bbox.refinement.exporting.export import export
from lightning_bbox.refinement.outcomes import Reason
from tests.refinement.exporting.test_export import some_cases, trained

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
CLOSE = {"rtol": 0, "atol": 1e-3}
HEIGHT, WIDTH = 120, 160

pytestmark = pytest.mark.slow


def run(*command, **options):
    """Run a command, whose output is shown where it fails."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A model, a picture of even colours where all decoders agree, and boxes in it."""
    folder = tmp_path_factory.mktemp("callers")
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT)))
    (folder / "picture.rgb").write_bytes(picture.tobytes())
    Image.fromarray(picture).save(folder / "picture.png")
    corners = random.integers(-5, (100, 60), (40, 2))
    boxes = np.hstack([corners, corners + random.integers(20, 60, (40, 2))]).astype(float).tolist()
    (folder / "boxes.json").write_text(json.dumps(boxes))
    model = trained()
    expected = Refiner(model).refine(picture, torch.tensor(boxes))
    assert (expected != torch.tensor(boxes)).any(dim=1).sum() >= 10
    return folder, model, boxes, expected


@pytest.fixture(scope="module")
def onnx_model(case):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = case[0] / "model.onnx"
    export(case[1], path, cases={"small": some_cases(5)})
    return path


def installed(folder, package):
    """Return the folder of a package that npm installs; skip where there is no npm, or no way."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("there is no Node here")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", package]
    try:
        done = subprocess.run(
            command, cwd=folder, check=False, capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm takes too long to bring {package}")
    if done.returncode:
        pytest.skip(f"npm can't bring {package}: {done.stderr[-200:]}")
    return folder / "node_modules" / package


def test_node_refines_the_boxes(case, onnx_model, tmp_path):
    folder, _, boxes, expected = case
    installed(tmp_path, "onnxruntime-node")
    shutil.copy(EXAMPLES / "refine.mjs", tmp_path)
    picture = folder / "picture.rgb"
    told = run("node", "refine.mjs", onnx_model, picture, WIDTH, HEIGHT, folder / "boxes.json",
               cwd=tmp_path)  # fmt: skip
    found = json.loads(told)
    refined = torch.tensor(found["refined"]).view(len(boxes), 4)
    torch.testing.assert_close(refined, expected, **CLOSE)
    assert set(found["reason"]) == {Reason.MOVED}


def test_a_page_without_a_server_refines_a_dragged_box(case, onnx_model, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    folder, model, boxes, expected = case
    wanted = next(
        torch.tensor(box)
        for box, found in zip(boxes, expected.tolist(), strict=True)
        if box != found and min(box) > 0 and box[2] < WIDTH and box[3] < HEIGHT
    )
    runtime = installed(tmp_path, "onnxruntime-web") / "dist"
    names = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((EXAMPLES / "refine.html").as_uri())
        given = [onnx_model, folder / "picture.png", *(runtime / name for name in names)]
        page.set_input_files("#files", given)
        page.get_by_text("Drag a rough box").wait_for(timeout=120_000)
        frame = page.locator("#canvas").bounding_box()
        x1, y1, x2, y2 = (wanted + 1).tolist()  # within the canvas' border
        page.mouse.move(frame["x"] + x1, frame["y"] + y1)
        page.mouse.down()
        page.mouse.move(frame["x"] + x2, frame["y"] + y2)
        page.mouse.up()
        cells = page.locator("#table tbody td")
        cells.first.wait_for()
        rough, refined = (
            torch.tensor([[float(edge) for edge in cells.nth(number).inner_text().split(",")]])
            for number in (0, 1)
        )
        browser.close()
    torch.testing.assert_close(rough[0], wanted, rtol=0, atol=1)
    expected = Refiner(model).refine(folder / "picture.png", rough)
    # The page shows two decimals, of the rough box too.
    torch.testing.assert_close(refined, expected, rtol=0, atol=0.02)


@pytest.mark.compile
@pytest.mark.skipif(not has_cxx_compiler(), reason="there is no C++ compiler here")
def test_a_compiled_library_is_the_same_in_python_and_cpp(case):
    folder, model, boxes, expected = case
    path = folder / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own compiler
        export(model, path, "aoti", cases={"small": some_cases(50)})
    found = Refiner(path).refine(folder / "picture.png", torch.tensor(boxes))
    torch.testing.assert_close(found, expected, **CLOSE)
    torch_folder = Path(torch.__file__).parent
    include, libraries = torch_folder / "include", torch_folder / "lib"
    program = folder / "refine"
    run("g++", "-std=c++20", EXAMPLES / "refine.cpp", "-o", program, f"-I{include}",
        f"-I{include}/torch/csrc/api/include", f"-L{libraries}", f"-Wl,-rpath,{libraries}",
        "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10")  # fmt: skip
    lines = "\n".join(" ".join(map(str, box)) for box in boxes)
    told = run(program, path, folder / "picture.rgb", WIDTH, HEIGHT, input=lines)
    rows = [[float(edge) for edge in line.split()] for line in told.splitlines()]
    torch.testing.assert_close(torch.tensor(rows), expected, **CLOSE)
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "usage: refine model.pt2 picture.rgb WIDTH HEIGHT\n",
    )
