"""Pixels on disk: those of a store in memory, decoded once, and again where they are of no use."""

import json
import os
import resource
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_bbox.core.cache_file import usual_folder
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import locked
from lightning_bbox.pictures.disk import DiskStore, open_disk_store
from lightning_bbox.pictures.pyramid import num_pixels
from lightning_bbox.pictures.store import ImageStore
from tests.core.test_prefetch import alive
from tests.crops import saved_pictures


@pytest.fixture
def pictures(tmp_path):
    """Paths and sizes of five pictures."""
    sizes = [(6, 9), (40, 31), (1, 1), (17, 64), (8, 3)]
    return saved_pictures(tmp_path, sizes), torch.tensor(sizes)


def leftovers(folder):
    """Return what lies in a folder, beside the locks, which stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def kept(folder):
    (path,) = folder.glob("*.rgbx")
    return path


@pytest.fixture
def checksums(monkeypatch):
    """Count the bytes that checksums are taken of."""
    taken, crc32 = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda *a: taken.append(len(a[0])) or crc32(*a))
    return taken


def test_a_store_on_disk_holds_what_one_in_memory_does(pictures, tmp_path, capsys):
    paths, sizes = pictures
    memory = ImageStore.from_files(paths, sizes)
    for said in ("decoded into", "read from"):
        store = open_disk_store(tmp_path / "store", paths, sizes)
        assert isinstance(store, DiskStore)
        assert store.on_host
        for name in ("pixels", "offsets", "heights", "widths"):
            assert torch.equal(getattr(store, name), getattr(memory, name))
        path = kept(tmp_path / "store")
        assert capsys.readouterr().out == f"store: 5 pictures {said} {path}\n"
    assert leftovers(tmp_path / "store") == [path.name]
    assert store.to(torch.device("meta")) is store


def test_expecting_crops_reads_nothing_outside_the_file(pictures, tmp_path):
    paths, sizes = pictures
    store, asked = open_disk_store(tmp_path / "store", paths, sizes), []
    boxes = [[0, 2.5, 5, 4.5], [-50, -90, 900, 900], [0, 80, 1, 90], [0, 9, 1, 3], [0, -9, 1, -5]]
    boxes = torch.tensor([*boxes, [torch.nan] * 4, [torch.inf] * 4, [0, 9, 31, 40]])
    index = torch.tensor([1, 1, 4, 3, 0, 2, 3, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_fadvise", lambda _, *place: asked.append(place[:2]))
        store.expect(index, boxes, 9)
    head = kept(tmp_path / "store").stat().st_size - 4 * len(store.pixels)
    starts = (head + 4 * store.offsets[index]).tolist()
    ends = (head + 4 * (store.offsets + num_pixels(sizes))[index]).tolist()
    assert asked[0] == (starts[0], 4 * 31 * 7)
    assert asked[1] == (ends[1] - 4, 4)  # the single pixel of the last level
    assert asked[3] == (starts[3] + 4 * 64 * 1, 4 * 64 * 10)
    assert asked[7] == (starts[7] + 4 * (31 * 40 + 16 * 2), 4 * 16 * 18)  # of the first half
    for (start, length), first, last in zip(asked, starts, ends, strict=True):
        assert first <= start <= start + length <= last
    store.expect(index, boxes, 9)


def paint_over(paths, _):
    Image.new("RGB", (9, 6), (1, 2, 3)).save(paths[0])


def flip_a_bit(_, path):
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(content)


def lose_from_the_head(_, path):
    head, newline, pixels = path.read_bytes().partition(b"\n")
    said = json.loads(head)
    del said["key"], said["facts"]
    path.write_bytes(json.dumps(said).encode() + newline + pixels)


SPOILT = {
    "damaged (the head of NAME has changed)": lose_from_the_head,
    "stale (made of other contents)": paint_over,
    "damaged (the checksum of NAME is wrong)": flip_a_bit,
    "damaged (NAME has 4100 bytes of 17192)": lambda _, path: os.truncate(path, 4100),
}


@pytest.mark.parametrize("problem", SPOILT)
def test_a_store_that_is_stale_or_damaged_is_decoded_anew(problem, pictures, tmp_path, capsys):
    paths, sizes = pictures
    folder = tmp_path / "store"
    used = open_disk_store(folder, paths, sizes).pixels
    before, path = used.clone(), kept(folder)
    replaced = path.rename(tmp_path / "used")
    path.write_bytes(replaced.read_bytes())
    SPOILT[problem](paths, path)
    with pytest.warns(UserWarning, match="decoded anew") as warned:
        store = open_disk_store(folder, paths, sizes)
    assert [str(each.message) for each in warned] == [
        f"the pictures in {folder} are {problem.replace('NAME', path.name)}: decoded anew"
    ]
    assert torch.equal(store.pixels, ImageStore.from_files(paths, sizes).pixels)
    assert torch.equal(used, before)
    capsys.readouterr()
    open_disk_store(folder, paths, sizes)
    assert "read from" in capsys.readouterr().out


def test_a_store_is_read_for_its_checksum_only_where_somebody_touched_it(
    pictures, tmp_path, checksums
):
    paths, sizes = pictures
    open_disk_store(tmp_path / "store", paths, sizes)
    for touched, expected in ((False, 0), (True, 13096), (False, 0)):
        checksums.clear()
        if touched:
            kept(tmp_path / "store").touch()
        open_disk_store(tmp_path / "store", paths, sizes)
        assert sum(checksums) == expected


def test_selections_of_one_data_set_lie_side_by_side(pictures, tmp_path, capsys):
    paths, sizes = pictures
    selections = (slice(0, 3), slice(1, 5))
    stores = [open_disk_store(tmp_path / "s", paths[each], sizes[each]) for each in selections]
    again = [open_disk_store(tmp_path / "s", paths[each], sizes[each]) for each in selections]
    for each, first, second in zip(selections, stores, again, strict=True):
        expected = ImageStore.from_files(paths[each], sizes[each]).pixels
        assert torch.equal(first.pixels, expected)
        assert torch.equal(second.pixels, expected)
    said = capsys.readouterr().out
    assert (said.count("decoded into"), said.count("read from")) == (2, 2)


def test_who_reads_a_store_doesn_t_wait_for_who_makes_another(pictures, tmp_path):
    paths, sizes = pictures
    open_disk_store(tmp_path / "s", paths, sizes)
    lock = Path(f"{kept(tmp_path / 's')}.lock")
    with ThreadPoolExecutor(1) as pool, locked(lock):
        store = pool.submit(open_disk_store, tmp_path / "s", paths, sizes).result(timeout=60)
    assert torch.equal(store.pixels, ImageStore.from_files(paths, sizes).pixels)


USERS = ["pictures.json", "pictures.rgbx", "lock", ".a.png.123.tmp"]


def test_the_files_of_a_data_set_survive_a_store_among_them(pictures, tmp_path):
    paths, sizes = pictures
    theirs = {name: f"my {name}".encode() for name in USERS}
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
    theirs |= {path.name: path.read_bytes() for path in paths}
    open_disk_store(tmp_path, paths, sizes)
    assert {name: (tmp_path / name).read_bytes() for name in theirs} == theirs


@pytest.mark.parametrize("content", [b"", b"mine", b"[]", b'{"made_by": "me"}', b"\xff" * 9])
def test_a_file_of_somebody_else_in_a_store_s_place_is_refused(content, pictures, tmp_path):
    open_disk_store(tmp_path / "s", *pictures)
    path = kept(tmp_path / "s")
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"{path}: wasn't written by .*data\.store\.folder"):
        open_disk_store(tmp_path / "s", *pictures)
    assert path.read_bytes() == content


def test_names_that_are_no_text_are_stored(tmp_path):
    (path,) = saved_pictures(tmp_path, [(6, 9)])
    path = path.rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    store = open_disk_store(tmp_path / "s", [path], torch.tensor([[6, 9]]))
    assert len(store.pixels) == 78


def test_a_folder_that_cannot_be_written_to_is_refused(pictures):
    with pytest.raises(BadInput, match=r"can't be written \(Not a directory\); .*store.folder"):
        open_disk_store(Path("/dev/null/store"), *pictures)
    with pytest.raises(BadInput, match=r"lock: can't be written"):
        open_disk_store(Path("/proc/self"), *pictures)


def test_pixels_that_do_not_fit_the_disk_are_refused_before_they_are_decoded(
    pictures, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match=r"0.0131 MB of pixels don't fit into the 0.005 MB"):
        open_disk_store(tmp_path / "store", *pictures)
    assert leftovers(tmp_path / "store") == []


def test_a_disk_that_fills_up_leaves_nothing_and_is_told(pictures, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(BadInput, match=r"\.rgbx: can't be written .*store.folder"):
            open_disk_store(tmp_path / "store", *pictures)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(tmp_path / "store") == []
    assert not alive()


def test_a_picture_that_is_broken_leaves_the_store_of_before(pictures, tmp_path):
    paths, sizes = pictures
    open_disk_store(tmp_path / "store", paths, sizes)
    before = kept(tmp_path / "store").read_bytes()
    paths[3].write_bytes(paths[3].read_bytes()[:80])
    with (
        pytest.warns(UserWarning, match="stale"),
        pytest.raises(BadInput, match=r"3\.png: the picture can't be decoded"),
    ):
        open_disk_store(tmp_path / "store", paths, sizes)
    assert kept(tmp_path / "store").read_bytes() == before
    paths[3].unlink()
    with pytest.raises(BadInput, match=r"3\.png: can't be read"):
        open_disk_store(tmp_path / "store", paths, sizes)


def test_of_several_that_need_a_store_one_decodes_it(pictures, tmp_path, capsys):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_disk_store(tmp_path / "s", *pictures), range(4)))
    said = capsys.readouterr().out
    assert said.count("decoded into") == 1
    assert all(torch.equal(store.pixels, stores[0].pixels) for store in stores)


def test_what_a_killed_process_left_is_removed(pictures, tmp_path):
    open_disk_store(tmp_path / "s", *pictures)
    name = kept(tmp_path / "s").name
    kept(tmp_path / "s").unlink()
    left, mine = f".{name}.123.lightning_bbox.tmp", f".{name}.123.tmp"
    for each in (left, mine):
        (tmp_path / "s" / each).touch()
    open_disk_store(tmp_path / "s", *pictures)
    assert leftovers(tmp_path / "s") == [mine, name]


def test_each_data_set_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    a, b = usual_folder(Path("one/data")), usual_folder(Path("two/data"))
    assert a != b
    assert a == usual_folder(Path("one/../one/data"))
    assert a.parent == tmp_path / "lightning_bbox"
