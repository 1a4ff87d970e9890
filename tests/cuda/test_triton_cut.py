"""The Triton kernel: on the CPU in Triton's interpreter, on a card as it is compiled there."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from lightning_bbox import SceneDataModule
from lightning_bbox.core.errors import BadInput
from lightning_bbox.cuda import triton_cut
from lightning_bbox.cuda.triton_cut import triton_bilinear
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.kernels import compiled_bilinear
from lightning_bbox.pictures.store import ImageStore
from tests import reference
from tests.crops import (
    ALIGNED,
    INSIDE,
    NOT_FINITE,
    OUTSIDE,
    SIZE,
    close,
    made_up_picture,
    mixed_batch,
    planes,
)

needs_triton = pytest.mark.skipif(triton_cut.triton is None, reason="triton isn't installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
COMPILED = pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])


def wrap_kernel(monkeypatch, interpret):
    """Wrap the kernel anew: Triton looks at the variable then, and not when a kernel is called."""
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpret)))
    monkeypatch.setattr(triton_cut, "_kernel", triton_cut.triton.jit(triton_cut._cut_block))


@pytest.fixture(params=["cpu", COMPILED])
def device(request, monkeypatch):
    """Where the kernel runs: interpreted on the CPU, compiled on a card."""
    if triton_cut.triton is None:
        pytest.skip("triton isn't installed")
    wrap_kernel(monkeypatch, interpret=request.param == "cpu")
    return torch.device(request.param)


def cut(device, store, index, boxes, size=SIZE, kernel=triton_bilinear):
    """Cut on a device; the crops are brought back."""
    batch = store.to(device), index.to(device), boxes.to(device)
    return cut_crops(*batch, size, kernel).cpu()


def cut_one(device, picture, *crop_boxes, size=SIZE):
    index, boxes = torch.zeros(len(crop_boxes)).long(), torch.tensor(crop_boxes)
    return cut(device, ImageStore.from_array(picture[None]), index, boxes, size)


@pytest.mark.parametrize("times", [0.3, 1, 4])
def test_crops_equal_the_oracle(device, times):
    picture = made_up_picture(31, 43)
    boxes = [tuple(times * edge for edge in box) for box in (INSIDE, *OUTSIDE.values())]
    crops = cut_one(device, picture, *boxes, size=5)
    expected = [reference.cut(picture, box, 5) for box in boxes]
    close(crops, torch.from_numpy(np.stack(expected)).float())


@pytest.mark.parametrize(
    ("count", "size"), [(0, 9), (1, 9), (8, 9), (8, 5), (2, 1), (2, 45), (2, 65)]
)
def test_crops_of_one_block_and_of_several_equal_the_plain_twins(device, count, size):
    batch = mixed_batch(count)
    close(cut(device, *batch, size), cut_crops(*batch, size))


@pytest.mark.parametrize("size", [8, 41])  # 41 times the nearest number to 1/41 isn't 1
@pytest.mark.parametrize("mirrored", [False, True])
def test_whole_pixel_cuts_are_bit_equal_to_slices(device, size, mirrored):
    picture = made_up_picture(31, 43)
    far, near = (size, 0) if not mirrored else (0, size)
    boxes = [(float(x + near), float(y + near), x + far, y + far) for x, y in ALIGNED]
    for crop, (x, y) in zip(cut_one(device, picture, *boxes, size=size), ALIGNED, strict=True):
        rows, columns = np.arange(y, y + size).clip(0, 30), np.arange(x, x + size).clip(0, 42)
        expected = planes(picture[rows][:, columns])
        assert torch.equal(crop, expected.flip(1, 2) if mirrored else expected)


@pytest.mark.parametrize("low", [(4.5, 7.0), (4.0, 7.5)])
@pytest.mark.parametrize("span", [(SIZE, SIZE), (2 * SIZE, SIZE), (SIZE, 2 * SIZE)])
def test_cuts_that_are_whole_in_part_equal_the_oracle(device, low, span):
    picture, box = made_up_picture(31, 43), (*low, low[0] + span[0], low[1] + span[1])
    (crop,) = cut_one(device, picture, box)
    close(crop, torch.from_numpy(reference.cut(picture, box, SIZE)).float())


def test_boxes_that_are_not_finite_read_their_own_picture_only(device):
    color = np.array((7, 130, 255), dtype=np.uint8)
    other = np.full((31, 43, 3), 64, dtype=np.uint8)
    pictures = np.stack([other, np.broadcast_to(color, (31, 43, 3)), other])
    boxes = torch.tensor([INSIDE, *NOT_FINITE, INSIDE])
    index = torch.ones(len(boxes)).long()
    with np.errstate(all="ignore"):  # the interpreter computes in NumPy, which would warn
        store = ImageStore.from_array(pictures)
        crops = cut(device, store, index, boxes)
    close(crops, (torch.from_numpy(color) / 255)[:, None, None].expand_as(crops), atol=1e-6)


@needs_triton
@pytest.mark.parametrize("size", [45, 227])
def test_it_compiles_for_hopper_in_single_precision(size, monkeypatch, tmp_path):
    """The interpreter takes what the compiler refuses; compiling needs no card."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    wrap_kernel(monkeypatch, interpret=False)
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    tensors = ("pixels", "offsets", "heights", "widths", "boxes", "crops")
    pointers = ("*fp32", "*i64", "*i32", "*i32", "*fp32", "*fp32")
    constants = {"size": size, **triton_cut.RULE, "block": triton_cut.BLOCK}
    signature = dict(zip(tensors, pointers, strict=True)) | dict.fromkeys(constants, "constexpr")
    source = compiler.ASTSource(triton_cut._kernel, signature, constants)
    code = triton_cut.triton.compile(source, target=target).asm
    assert code["cubin"]
    assert "fma.rn.f32" in code["ptx"]
    assert "f64" not in code["ptx"]


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.compile
@pytest.mark.parametrize("size", [9, 45, 227])
def test_crops_equal_the_compiled_twins_on_a_card(size, monkeypatch):
    wrap_kernel(monkeypatch, interpret=False)
    ours, twin = (
        cut(torch.device("cuda"), *mixed_batch(512), size, kernel)
        for kernel in (triton_bilinear, compiled_bilinear)
    )
    close(ours, twin)


def test_without_triton_the_module_is_imported_and_the_kernel_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.find_spec("lightning_bbox.cuda.triton_cut")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(BadInput, match="needs triton; install it"):
        cut(torch.device("cpu"), *mixed_batch(2), kernel=module.triton_bilinear)


def test_a_data_module_cuts_by_it_where_asked_to(monkeypatch):
    options = {"num_scenes": 10, "eval_draws": 8}
    data, plain = (SceneDataModule(compile=way, **options) for way in ("triton", False))
    samples = data.samples("val")
    if triton_cut.triton is None:
        with pytest.raises(BadInput, match="the Triton kernel needs triton"):
            data.cut(samples)
        return
    wrap_kernel(monkeypatch, interpret=False)
    with pytest.raises(BadInput, match="needs a CUDA device, but the store is on cpu"):
        data.cut(samples)
    wrap_kernel(monkeypatch, interpret=True)
    close(data.cut(samples), plain.cut(samples))
