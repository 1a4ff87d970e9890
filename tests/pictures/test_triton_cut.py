"""The Triton kernel: on the CPU in Triton's interpreter, on a card as it is compiled there."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from lightning_bbox import SceneDataModule
from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures import triton_cut
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.kernels import compiled_bilinear
from lightning_bbox.pictures.triton_cut import triton_bilinear
from tests import reference
from tests.pictures.test_cut import (
    ALIGNED,
    INSIDE,
    NOT_FINITE,
    OUTSIDE,
    SHAPES,
    SIZE,
    close,
    made_up_picture,
    mixed_batch,
    planes,
    store_of,
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


def cut(device, store, index, boxes, size=SIZE, supersample=1, **options):
    """Cut with the Triton kernel on a device; the crops are brought back."""
    store, index = store.to(device), index.to(device)
    pictures = (tensor[index] for tensor in (store.offsets, store.heights, store.widths))
    return triton_bilinear(
        store.pixels, *pictures, boxes.to(device), size, supersample, **options
    ).cpu()


def cut_one(device, picture, *crop_boxes, size=SIZE, **options):
    index, boxes = torch.zeros(len(crop_boxes)).long(), torch.tensor(crop_boxes)
    return cut(device, store_of(picture), index, boxes, size, **options)


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_crops_equal_the_oracle(device, supersample):
    picture, boxes = made_up_picture(31, 43), [INSIDE, *OUTSIDE.values()]
    crops = cut_one(device, picture, *boxes, size=5, supersample=supersample)
    expected = [reference.cut(picture, box, 5, supersample) for box in boxes]
    close(crops, torch.from_numpy(np.stack(expected)).float())


@pytest.mark.parametrize("count", [0, 1, 8])
@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_crops_equal_the_plain_twins(device, count, supersample):
    store, index, boxes = mixed_batch(count)
    crops = cut(device, store, index, boxes, SIZE, supersample)
    assert crops.shape == (count, 3, SIZE, SIZE)
    close(crops, cut_crops(store, index, boxes, SIZE, supersample))


@pytest.mark.parametrize("size", [1, 2, 17, 45, 64, 65])
def test_crops_of_one_block_and_of_several_equal_the_plain_twins(device, size):
    store, index, boxes = mixed_batch(2)
    close(cut(device, store, index, boxes, size), cut_crops(store, index, boxes, size))


def test_every_crop_comes_from_its_own_picture_of_its_own_size(device):
    pictures = [made_up_picture(*shape, seed) for seed, shape in enumerate(SHAPES)]
    index = torch.tensor([4, 0, 3, 1, 2])
    boxes = torch.tensor([INSIDE, *list(OUTSIDE.values())[:4]])
    crops = cut(device, store_of(*pictures), index, boxes, size=4)
    expected = [
        reference.cut(pictures[number], box, 4)
        for number, box in zip(index.tolist(), boxes, strict=True)
    ]
    close(crops, torch.from_numpy(np.stack(expected)).float())


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


@pytest.mark.parametrize(
    ("box", "supersample"),
    [
        ((4.5, 7.0, 4.5 + SIZE, 7.0 + SIZE), 1),
        ((4.0, 7.5, 4.0 + SIZE, 7.5 + SIZE), 1),
        ((4.0, 7.0, 4.0 + 2 * SIZE, 7.0 + SIZE), 1),
        ((4.0, 7.0, 4.0 + SIZE, 7.0 + 2 * SIZE), 1),
        ((4.0, 7.0, 4.0 + SIZE, 7.0 + SIZE), 2),
    ],
)
def test_cuts_that_are_whole_in_part_equal_the_oracle(device, box, supersample):
    picture = made_up_picture(31, 43)
    (crop,) = cut_one(device, picture, box, supersample=supersample)
    close(crop, torch.from_numpy(reference.cut(picture, box, SIZE, supersample)).float())


@pytest.mark.parametrize("supersample", [1, 2])
def test_boxes_that_are_not_finite_read_their_own_picture_only(device, supersample):
    color = np.array((7, 130, 255), dtype=np.uint8)
    other = np.full((31, 43, 3), 64, dtype=np.uint8)
    store = store_of(other, np.broadcast_to(color, (31, 43, 3)), other)
    boxes = torch.tensor([INSIDE, *NOT_FINITE, INSIDE])
    with np.errstate(all="ignore"):  # the interpreter computes in NumPy, which would warn
        crops = cut(device, store, torch.ones(len(boxes)).long(), boxes, supersample=supersample)
    close(crops, (torch.from_numpy(color) / 255)[:, None, None].expand_as(crops), atol=1e-6)


def test_boxes_need_not_be_contiguous(device):
    store, index, boxes = mixed_batch(3)
    spread = torch.stack([boxes, boxes], dim=2)[..., 0]
    assert not spread.is_contiguous()
    close(cut(device, store, index, spread), cut_crops(store, index, boxes, SIZE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_crops_are_written_in_the_dtype_that_is_asked_for(device, dtype):
    store, index, boxes = mixed_batch(3)
    crops = cut(device, store, index, boxes, dtype=dtype)
    assert crops.dtype == dtype
    # A unit in the last place: the interpreter truncates to bfloat16 where the card rounds.
    close(crops.float(), cut_crops(store, index, boxes, SIZE), atol=torch.finfo(dtype).eps)


@needs_triton
@pytest.mark.parametrize(("size", "supersample"), [(45, 1), (45, 3), (227, 1)])
def test_it_compiles_for_hopper_in_single_precision(size, supersample, monkeypatch, tmp_path):
    """The interpreter takes what the compiler refuses; compiling needs no card."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    wrap_kernel(monkeypatch, interpret=False)
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    tensors = ("pixels", "offsets", "heights", "widths", "boxes", "crops")
    pointers = ("*i32", "*i64", "*i32", "*i32", "*fp32", "*bf16")
    constants = {"size": size, "supersample": supersample, "block": triton_cut.BLOCK}
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
@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("size", [45, 227])
def test_crops_equal_the_compiled_twins_on_a_card(size, supersample, monkeypatch):
    wrap_kernel(monkeypatch, interpret=False)
    device = torch.device("cuda")
    store, index, boxes = mixed_batch(512)
    crops = cut(device, store, index, boxes, size, supersample)
    twin = cut_crops(
        store.to(device), index.to(device), boxes.to(device), size, supersample, compiled_bilinear
    )
    close(crops, twin.cpu())


@needs_triton
def test_a_store_that_is_not_on_a_card_is_refused(monkeypatch):
    wrap_kernel(monkeypatch, interpret=False)
    with pytest.raises(BadInput, match="needs a CUDA device, but the store is on cpu"):
        cut(torch.device("cpu"), *mixed_batch(2))


def test_without_triton_the_module_is_imported_and_the_kernel_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.find_spec("lightning_bbox.pictures.triton_cut")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    one = torch.tensor([1]).int()
    with pytest.raises(BadInput, match="needs triton; install it"):
        module.triton_bilinear(one, torch.tensor([0]), one, one, torch.zeros(1, 4), 1, 1)


def test_a_data_module_cuts_by_it_where_asked_to(monkeypatch):
    options = {"num_scenes": 10, "eval_draws": 8}
    data, plain = (SceneDataModule(compile=way, **options) for way in ("triton", False))
    samples = data.samples("val")
    with pytest.raises(BadInput, match="the Triton kernel needs"):
        data.cut(samples)
    if triton_cut.triton is None:
        pytest.skip("triton isn't installed")
    wrap_kernel(monkeypatch, interpret=True)
    close(data.cut(samples), plain.cut(samples))
