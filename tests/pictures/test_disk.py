"""Pixels on disk: those of a store in memory, decoded once, and again where they are of no use."""

import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures.disk import DiskStore, open_disk_store, usual_folder
from lightning_bbox.pictures.store import ImageStore
from tests.core.test_prefetch import alive
from tests.crops import saved_pictures


@pytest.fixture
def pictures(tmp_path):
    """Paths and sizes of five pictures."""
    sizes = [(6, 9), (40, 31), (1, 1), (17, 64), (8, 3)]
    return saved_pictures(tmp_path, sizes), torch.tensor(sizes)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_store_on_disk_holds_what_one_in_memory_does(pictures, tmp_path, capsys):
    paths, sizes = pictures
    memory = ImageStore.from_files(paths, sizes)
    for said in ("decoded into", "read from"):
        store = open_disk_store(tmp_path / "store", paths, sizes)
        assert isinstance(store, DiskStore)
        assert store.on_host
        for name in ("pixels", "offsets", "heights", "widths"):
            assert torch.equal(getattr(store, name), getattr(memory, name))
        assert capsys.readouterr().out == f"store: 5 pictures {said} {tmp_path / 'store'}\n"
    assert leftovers(tmp_path / "store") == ["lock", "pictures.json", "pictures.rgbx"]
    assert store.to(torch.device("meta")) is store


def test_expecting_crops_reads_nothing_outside_the_file(pictures, tmp_path):
    paths, sizes = pictures
    store, asked = open_disk_store(tmp_path / "store", paths, sizes), []
    boxes = [[0, 2.5, 5, 4.5], [-50, -90, 900, 900], [0, 80, 1, 90], [0, 9, 1, 3], [0, -9, 1, -5]]
    boxes = torch.tensor([*boxes, [torch.nan] * 4, [torch.inf] * 4])
    index = torch.tensor([1, 1, 4, 3, 0, 2, 3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_fadvise", lambda _, *place: asked.append(place[:2]))
        store.expect(index, boxes)
    starts = (4 * store.offsets[index]).tolist()
    ends = (4 * (store.offsets + store.heights * store.widths)[index]).tolist()
    assert asked[0] == (starts[0] + 4 * 31 * 1, 4 * 31 * 5)
    assert asked[1] == (starts[1], ends[1] - starts[1])
    assert asked[3] == (starts[3] + 4 * 64 * 2, 4 * 64 * 8)
    for (start, length), first, last in zip(asked, starts, ends, strict=True):
        assert first <= start <= start + length <= last
    store.expect(index, boxes)


def paint_over(paths, _):
    Image.new("RGB", (9, 6), (1, 2, 3)).save(paths[0])


def rename(paths, _):
    paths[0] = paths[0].rename(paths[0].with_name("other.png"))


def flip_a_bit(_, folder):
    content = bytearray((folder / "pictures.rgbx").read_bytes())
    content[500] ^= 1
    (folder / "pictures.rgbx").write_bytes(content)


SPOILT = {
    "stale (made of other contents)": paint_over,
    "stale (made of other pictures)": rename,
    "damaged (the checksum of pictures.rgbx is wrong)": flip_a_bit,
    "damaged (pictures.rgbx has 100 bytes of 9628)": (
        lambda _, folder: os.truncate(folder / "pictures.rgbx", 100)
    ),
    "damaged (pictures.rgbx can't be read: No such file or directory)": (
        lambda _, folder: (folder / "pictures.rgbx").unlink()
    ),
    "damaged (pictures.json can't be read)": (
        lambda _, folder: (folder / "pictures.json").write_text("{")
    ),
}


@pytest.mark.parametrize("problem", SPOILT)
def test_a_store_that_is_stale_or_damaged_is_decoded_anew(problem, pictures, tmp_path, capsys):
    paths, sizes = pictures
    folder = tmp_path / "store"
    open_disk_store(folder, paths, sizes)
    SPOILT[problem](paths, folder)
    with pytest.warns(UserWarning, match="decoded anew") as warned:
        store = open_disk_store(folder, paths, sizes)
    assert [str(each.message) for each in warned] == [
        f"the pictures in {folder} are {problem}: decoded anew"
    ]
    assert torch.equal(store.pixels, ImageStore.from_files(paths, sizes).pixels)
    capsys.readouterr()
    open_disk_store(folder, paths, sizes)
    assert "read from" in capsys.readouterr().out


def test_a_store_in_use_is_not_touched_by_one_that_takes_its_place(pictures, tmp_path):
    paths, sizes = pictures
    store = open_disk_store(tmp_path / "store", paths, sizes)
    before = store.pixels.clone()
    with pytest.warns(UserWarning, match="stale"):
        open_disk_store(tmp_path / "store", paths[1:], sizes[1:])
    assert torch.equal(store.pixels, before)


def test_a_folder_that_cannot_be_written_to_is_refused(pictures):
    with pytest.raises(BadInput, match=r"can't be written \(Not a directory\); .*store.folder"):
        open_disk_store(Path("/dev/null/store"), *pictures)
    with pytest.raises(BadInput, match=r"/proc/self: can't be written|lock: can't be written"):
        open_disk_store(Path("/proc/self"), *pictures)


def test_pixels_that_do_not_fit_the_disk_are_refused_before_they_are_decoded(
    pictures, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match=r"0.00963 MB of pixels don't fit into the 0.005 MB"):
        open_disk_store(tmp_path / "store", *pictures)
    assert leftovers(tmp_path / "store") == ["lock"]


def test_a_disk_that_fills_up_leaves_nothing_and_is_told(pictures, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(BadInput, match=r"pictures\.rgbx: can't be written .*store.folder"):
            open_disk_store(tmp_path / "store", *pictures)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(tmp_path / "store") == ["lock"]
    assert not alive()


def test_a_picture_that_is_broken_leaves_the_store_of_before(pictures, tmp_path):
    paths, sizes = pictures
    open_disk_store(tmp_path / "store", paths, sizes)
    before = (tmp_path / "store" / "pictures.rgbx").read_bytes()
    paths[3].write_bytes(paths[3].read_bytes()[:80])
    with (
        pytest.warns(UserWarning, match="stale"),
        pytest.raises(BadInput, match=r"3\.png: the picture can't be decoded"),
    ):
        open_disk_store(tmp_path / "store", paths, sizes)
    assert (tmp_path / "store" / "pictures.rgbx").read_bytes() == before
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
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".pictures.rgbx.123.tmp").touch()
    (tmp_path / "s" / ".mine.123.tmp").touch()
    open_disk_store(tmp_path / "s", *pictures)
    assert leftovers(tmp_path / "s") == [".mine.123.tmp", "lock", "pictures.json", "pictures.rgbx"]


def test_each_data_set_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    a, b = usual_folder(Path("one/data")), usual_folder(Path("two/data"))
    assert a != b
    assert a == usual_folder(Path("one/../one/data"))
    assert a.parent == tmp_path / "lightning_bbox"
