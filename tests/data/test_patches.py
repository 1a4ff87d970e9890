import re
import struct
import tracemalloc
from contextlib import suppress
from zipfile import ZIP_BZIP2, ZIP_LZMA, ZipFile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bbox.core.errors import BadInput
from lightning_bbox.data import patch_files
from lightning_bbox.data.options import Shares
from lightning_bbox.data.patches import PatchDataModule
from lightning_bbox.geometry.boxes import box_centers
from lightning_bbox.geometry.jitter import UniformJitter
from tests.crops import batch_of, fitted
from tests.runs import same

SPLITS = ("train", "val", "test")


def draw_patches(num=30, height=26, width=26, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def write(path, patches, **arrays):
    """Write an npz, or an npy where the path says so, and return its path."""
    if path.suffix == ".npy":
        np.save(path, patches)
    else:
        np.savez(path, patches=patches, **arrays)
    return path


def read(path, **arguments):
    small = {"batch_size": 8, "draws_per_epoch": 200, "eval_draws": 50, "compile": False}
    return PatchDataModule(str(path), **{**small, **arguments})


def slices(patches, samples, size):
    """Cut the crops as slices of the arrays, in NumPy, and mirror them."""
    crops = []
    rows = zip(samples.image_index, samples.proposals.tolist(), samples.flips.tolist(), strict=True)
    for index, (left, top, *_), (flip_x, flip_y) in rows:
        assert left == int(left)
        assert top == int(top)
        crop = patches[index, int(top) : int(top) + size, int(left) : int(left) + size]
        crop = crop[:, ::-1] if flip_x else crop
        crops.append(crop[::-1] if flip_y else crop)
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


LAYOUTS = {
    "nhwc": lambda patches: patches,
    "nchw": lambda patches: patches.transpose(0, 3, 1, 2),
    "grey": lambda patches: patches[..., :1],
    "grey_nchw": lambda patches: patches[..., :1].transpose(0, 3, 1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("shape", [(26, 26), (26, 30)], ids=["square", "wide"])
@pytest.mark.parametrize("size", [8, 16, 20])
def test_crops_are_slices_of_the_patches_bit_by_bit(tmp_path, layout, suffix, shape, size):
    patches = draw_patches(30, *shape)
    data = read(write(tmp_path / f"p.{suffix}", LAYOUTS[layout](patches)), crop_size=size)
    assert data.source.notes[0] == f"30 patches of 26 x {shape[1]}, shifts cut from the margin"
    assert data.source.classes == ("patch",)
    seen = patches[..., :1].repeat(3, axis=3) if layout.startswith("grey") else patches
    for split in SPLITS:
        samples, batch = data.samples(split), batch_of(data, split)
        assert torch.equal(batch.crops, slices(seen, samples, size).float() * (1 / 255))


def test_shifts_are_whole_px_up_to_the_margin_in_both_directions(tmp_path):
    data = read(write(tmp_path / "p.npy", draw_patches()), eval_draws=1_000)
    parted = data.source.splits
    assert {name: len(parted[name]) for name in SPLITS} == {"train": 22, "val": 2, "test": 6}
    for split in SPLITS:
        samples = data.samples(split)
        shifts = (box_centers(samples.gt_boxes) - box_centers(samples.proposals)).round()
        assert {*shifts[:, 0].int().tolist()} == {*shifts[:, 1].int().tolist()} == {*range(-5, 6)}
        assert torch.equal(box_centers(samples.proposals) + shifts, box_centers(samples.gt_boxes))
    assert data.spec().bounds == [5.0, 5.0]
    assert data.geometry.px(samples.proposals).unique().tolist() == [1.0]


def test_sub_pixel_shifts_are_there_for_the_asking(tmp_path):
    data = read(write(tmp_path / "p.npy", draw_patches()), jitter=UniformJitter(4.5))
    samples = data.samples("test")
    shifts = box_centers(samples.gt_boxes) - box_centers(samples.proposals)
    assert (shifts != shifts.round()).any(dim=1).all()
    assert 4 < shifts.abs().max() <= 4.5


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_never_cross_splits(tmp_path, seed):
    groups = np.arange(60) // 4
    path = write(tmp_path / "p.npz", draw_patches(60), groups=groups)
    splits = read(path, splits=Shares(seed=seed)).source.splits
    found = {name: set(groups[splits[name].image_index].tolist()) for name in SPLITS}
    assert {name: len(names) for name, names in found.items()} == {"train": 11, "val": 1, "test": 3}
    assert set.union(*found.values()) == set(range(15))
    for name in SPLITS:
        items = splits[name]
        assert len(items) == 4 * len(found[name])
        pairs = set(zip(items.clusters.tolist(), groups[items.image_index].tolist(), strict=True))
        assert len(pairs) == len(found[name])


def test_a_note_a_role_says_how_it_came_about(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "p.npz", draw_patches(60), groups=np.arange(60) // 4)
    write(tmp_path / "q.npz", draw_patches(60))
    why = "because files of patches name no splits"
    grouped = PatchDataModule("~/p.npz", splits=Shares(seed=3), compile=False)
    assert grouped.source.notes[1:] == (
        "train: all other patches",
        f"val: 10 % of the training groups by seed 3, {why}",
        f"test: 20 % of the groups by seed 3, {why}",
    )
    single = PatchDataModule("~/q.npz", splits=Shares(test_fraction=0.25), compile=False)
    assert single.source.notes[3] == f"test: 25 % of the patches by seed 0, {why}"


def test_folds_of_validation_share_no_group(tmp_path):
    path = write(tmp_path / "p.npz", draw_patches(60), groups=np.arange(60) // 2)
    folds = [read(path, splits=Shares(fold=fold)).source.splits for fold in range(10)]
    images = [set(splits["val"].image_index.tolist()) for splits in folds]
    first = read(path).source.splits
    assert images[0] == set(first["val"].image_index.tolist())
    assert sum(len(fold) for fold in images) == len(set.union(*images)) == 48
    assert set.union(*images).isdisjoint(first["test"].image_index.tolist())


def blobs(offsets, side=31):
    """Draw a bright spot at each offset (x, y) from the patch's centre."""
    grid = np.arange(side) + 0.5 - side / 2
    x, y = grid - offsets[:, :1], grid - offsets[:, 1:]
    spots = 255 * np.exp(-(x[:, None, :] ** 2 + y[:, :, None] ** 2) / (2 * 2.0**2))
    return spots.round().astype(np.uint8)[..., None]


def spot_centers(batch, size):
    """Return where the spots lie, in the frame of the boxes."""
    weights = batch.crops.mean(dim=1)
    grid = torch.arange(size) + 0.5
    x, y = (weights.sum(1) * grid).sum(1), (weights.sum(2) * grid).sum(1)
    return torch.stack([x, y], 1) / weights.sum((1, 2))[:, None] + batch.proposals[:, :2]


@pytest.mark.parametrize("crop_size", [None, 25])
def test_shifted_patches_are_used_as_they_are_and_offsets_point_to_the_object(tmp_path, crop_size):
    offsets = np.random.default_rng(0).uniform(-4, 4, (50, 2))
    patches = blobs(offsets)
    path = write(tmp_path / "p.npz", patches, offsets=offsets)
    data = read(path, crop_size=crop_size)
    assert data.source.notes[0] == "50 patches of 31 x 31, already shifted"
    used = offsets[data.source.splits["train"].image_index]
    assert data.spec().bounds == pytest.approx([np.abs(used).max()] * 2, rel=1e-5)
    size = crop_size or 31
    for split in SPLITS:
        samples, batch = data.samples(split), batch_of(data, split)
        expected = slices(patches.repeat(3, axis=3), samples, size).float() * (1 / 255)
        assert torch.equal(batch.crops, expected)
        assert samples.proposals.unique(dim=0).tolist() == [
            [(31 - size) / 2] * 2 + [(31 + size) / 2] * 2
        ]
        assert (spot_centers(batch, size) - box_centers(batch.gt_boxes)).abs().max() < 0.1
        signs = 1 - 2 * samples.flips
        stated = torch.from_numpy(offsets)[samples.image_index].float() * signs
        torch.testing.assert_close(box_centers(batch.gt_boxes) - 15.5, stated)


def test_statistics_come_from_training_patches_alone(tmp_path):
    random = np.random.default_rng(0)
    patches, offsets = draw_patches(40), random.uniform(-3, 3, (40, 2))
    first = read(write(tmp_path / "a.npz", patches, offsets=offsets))
    held_out = torch.cat([first.source.splits[name].image_index for name in ("val", "test")])
    patches, offsets = patches.copy(), offsets.copy()
    patches[held_out] = 255 - patches[held_out] // 2
    offsets[held_out] = 9.0
    other = read(write(tmp_path / "b.npz", patches, offsets=offsets))
    assert first.spec() == other.spec()
    assert same(fitted(first), fitted(other))
    assert not torch.equal(batch_of(first, "test").crops, batch_of(other, "test").crops)


P = draw_patches(30)
REFUSED = {
    "key": ({"crops": P}, {}, "has no key 'patches', only crops"),
    "float": (
        {"patches": P / 255},
        {},
        r"patches are float64 of shape \(30, 26, 26, 3\); expected",
    ),
    "three_dims": ({"patches": P[..., 0]}, {}, r"patches are uint8 of shape \(30, 26, 26\)"),
    "channels": ({"patches": P[..., :2]}, {}, r"shape \(30, 26, 26, 2\) have neither 1 nor 3"),
    "groups": ({"patches": P, "groups": np.arange(29)}, {}, r"groups have shape \(29,\); expected"),
    "group_objects": (
        {"patches": P, "groups": np.array([f"{n}" for n in range(30)], dtype=object)},
        {},
        "groups|Object arrays",
    ),
    "offsets": (
        {"patches": P, "offsets": np.zeros((30, 4))},
        {},
        r"offsets have shape \(30, 4\); expected \(30, 2\), finite, x and y in px",
    ),
    "offsets beyond": (
        {"patches": P, "offsets": np.where(np.arange(60).reshape(30, 2) == 15, -4000.0, 13.0)},
        {},
        r"1 of 30 offsets lead out of their patches of 26 x 26, such as \(13, -4000\) of patch 7;",
    ),
    "nan": ({"patches": P, "offsets": np.full((30, 2), np.nan)}, {}, "expected .*, finite"),
    "texts": ({"patches": P, "offsets": np.full((30, 2), "1")}, {}, "offsets"),
    "no_margin": (
        {"patches": P},
        {"crop_size": 26},
        "shifts of 1 px around crops of 26 need .* 28",
    ),
    "margin": (
        {"patches": P},
        {"crop_size": 20, "jitter": UniformJitter(3.5)},
        r"shifts of 3\.5 px around crops of 20 need patches of 28 px, but these have 26",
    ),
    "odd_margin": ({"patches": P}, {"crop_size": 17}, "leave an odd margin"),
    "too_large": ({"patches": P}, {"crop_size": 27}, "crops of 27 px don't fit patches of 26 px"),
    "too_small": ({"patches": P[:, :16, :16]}, {}, "crops of 6 px don't fit patches of 16 px"),
    "few_groups": ({"patches": P, "groups": np.arange(30) % 2}, {}, "too few groups to hold one"),
    "jitter": (
        {"patches": P, "offsets": np.zeros((30, 2))},
        {"jitter": UniformJitter(1.0)},
        "its patches are shifted already",
    ),
}


@pytest.mark.parametrize(("arrays", "arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_arrays_are_refused_in_one_sentence(tmp_path, arrays, arguments, message):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(BadInput, match=message):
        read(tmp_path / "p.npz", **arguments).setup("fit")


def truncated(path):
    write(path, P)
    path.write_bytes(path.read_bytes()[:-400])


def flipped(path):
    np.savez_compressed(path, patches=P)
    content = bytearray(path.read_bytes())
    content[200:220] = bytes(255 - byte for byte in content[200:220])
    path.write_bytes(content)


def with_header(path, header):
    """Write an npz whose only array has this header, padded as NumPy does, and its checksum."""
    head = header.encode().ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + P.tobytes()
    with ZipFile(path, "w") as archive:
        archive.writestr("patches.npy", member)


def lying(path, claimed):
    """Write an npz whose directory claims another size of its array once it is inflated."""
    np.savez_compressed(path, patches=P)
    size = len(P.tobytes()) + 128
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", claimed)))


def of_method(path, method):
    with ZipFile(path, "w", method) as archive, archive.open("patches.npy", "w") as file:
        np.lib.format.write_array(file, P)


def encrypted(path):
    write(path, P)
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + flags] |= 1
    path.write_bytes(content)


def claiming(*shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    return lambda path: with_header(path, header)


CANT = "can't be read as npy or npz "


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.npz", str, "no such file; set data.file to an npy or npz"),
        ("text.npz", lambda path: path.write_text("not an array"), "can't be read as npy or npz"),
        ("empty.npy", lambda path: path.write_bytes(b""), "can't be read as npy or npz"),
        ("folder.npy", lambda path: path.mkdir(), "can't be read as npy or npz"),
        ("truncated.npy", truncated, "can't be read as npy or npz"),
        ("truncated.npz", truncated, "can't be read as npy or npz"),
        ("flipped.npz", flipped, CANT + r"\(.*(decompress|CRC)"),
        (
            "huge.npz",
            claiming(10**15, 9),
            CANT + r"\(.* takes 9000",
        ),
        (
            "large.npz",
            claiming(30, 26, 26, 4),
            CANT + ".* 81120 byt",
        ),
        (
            "small.npz",
            claiming(3, 26, 26, 3),
            CANT + ".* takes 6084",
        ),
        ("below.npz", claiming(-1, -60840), CANT + ".*shape"),
        ("header.npz", lambda p: with_header(p, "{'descr': ((("), CANT),
        (
            "claims.npz",
            lambda p: lying(p, 2**31),
            CANT + r".*claims 2\.15 GB, more than its",
        ),
        ("less.npz", lambda p: lying(p, 1000), CANT),
        ("bzip2.npz", lambda p: of_method(p, ZIP_BZIP2), CANT + ".*a way that numpy.savez doesn"),
        ("lzma.npz", lambda p: of_method(p, ZIP_LZMA), CANT + ".*a way that numpy.savez doesn"),
        ("encrypted.npz", encrypted, CANT + r"\(.*encrypted"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path / name}: ") + message):
        read(tmp_path / name)


def test_arrays_that_are_not_needed_are_not_inflated(tmp_path):
    more = {"notes": np.zeros(40 << 20, np.uint8), "objects": np.array([{}], dtype=object)}
    np.savez_compressed(tmp_path / "p.npz", patches=P, **more)
    tracemalloc.start()
    try:
        assert len(read(tmp_path / "p.npz").source.store) == 30
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_an_array_beyond_the_memory_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(patch_files, "free_host_memory", lambda: 60_000)
    with pytest.raises(BadInput, match=r"it takes 0\.0608 MB of memory, and 0\.06 MB are free"):
        read(write(tmp_path / "p.npz", P))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_is_refused_in_one_sentence_or_changes_no_patch(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "p.npz"
    np.savez_compressed(path, patches=P[:3], groups=np.arange(3), offsets=np.zeros((3, 2)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    with suppress(BadInput):
        patches, _, _ = patch_files.read_patches(path)
        np.testing.assert_array_equal(patches, P[:3])


@pytest.mark.parametrize(("channels", "most"), [(1, 6.6), (3, 3.0)], ids=["grey", "colour"])
def test_patches_take_their_file_and_what_is_packed_with_halves(tmp_path, channels, most):
    """Grey ones took 16 times their file at the peak, and 11 times thereafter."""
    patches = draw_patches(4_000, 50, 50)[..., :channels]
    path = write(tmp_path / "p.npz", patches)
    tracemalloc.start()
    try:
        data = read(path)
        _ = data.source
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    halves = 3364 / 2500  # 50 x 50, 25 x 25, 13 x 13 and so on
    assert kept < 1.02 * (1 + 4 * halves / channels) * patches.nbytes
    assert peak < (most + 0.6) * patches.nbytes + (8 << 20)
    np.testing.assert_array_equal(data.source.store.picture(3999)[..., :channels], patches[3999])
