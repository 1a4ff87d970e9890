"""Stores that stay on the host: the same crops to the bit, kept on disk, chosen by room."""

import json
import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import (
    Augment,
    BinHead,
    BoxDataModule,
    BoxRegressor,
    ChannelNorm,
    CropGeometry,
    ShallowConvNet,
)
from lightning_bbox.cli.main import main
from lightning_bbox.core.errors import BadInput
from lightning_bbox.data import module as data_module
from lightning_bbox.data.patches import PatchDataModule
from lightning_bbox.models.checkpoints import read_checkpoint
from lightning_bbox.models.feature_cache import compute_features
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.pictures.places import (
    DiskStore,
    Room,
    choose_place,
    free_host_memory,
    measure_room,
    open_store,
    usual_folder,
)
from lightning_bbox.pictures.store import ImageStore
from tests.conftest import write_rectangles
from tests.core.test_prefetch import alive
from tests.runs import TINY, equal, interfered, resume

CPU = torch.device("cpu")
ALL_ON = Augment(brightness=0.3, contrast=0.3, saturation=0.3, noise=0.1)
GB = 10**9


@pytest.fixture
def pictures(tmp_path):
    """Paths and sizes of five pictures."""
    sizes, paths = [(6, 9), (40, 31), (1, 1), (17, 64), (8, 3)], []
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        paths.append(tmp_path / f"{number}.png")
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return paths, torch.tensor(sizes)


@pytest.fixture
def rectangles(tmp_path):
    """Return how to make data modules of the pictures of rectangles."""
    (tmp_path / "data").mkdir()
    write_rectangles(tmp_path / "data")

    def make(**arguments):
        small = {"batch_size": 8, "draws_per_epoch": 40, "eval_draws": 21, "compile": False}
        small |= {"crop": CropGeometry(size=24), "augment": ALL_ON}
        small |= {"store_folder": str(tmp_path / "store")}
        return BoxDataModule(str(tmp_path / "data"), **{**small, **arguments})

    return make


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_store_on_disk_holds_what_one_in_memory_does(pictures, tmp_path, capsys):
    paths, sizes = pictures
    memory = ImageStore.from_files(paths, sizes)
    for said in ("decoded into", "read from"):
        store = open_store("disk", tmp_path / "store", paths, sizes)
        assert isinstance(store, DiskStore)
        assert store.stays
        for name in ("pixels", "offsets", "heights", "widths"):
            assert torch.equal(getattr(store, name), getattr(memory, name))
        assert capsys.readouterr().out == f"store: 5 pictures {said} {tmp_path / 'store'}\n"
    assert leftovers(tmp_path / "store") == ["lock", "pictures.json", "pictures.rgbx"]
    assert store.to(torch.device("meta")) is store


def test_expecting_crops_reads_nothing_outside_the_file(pictures, tmp_path):
    paths, sizes = pictures
    store, asked = open_store("disk", tmp_path / "store", paths, sizes), []
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


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        ("picture", "stale (made of other contents)"),
        ("name", "stale (made of other pictures)"),
        ("byte", "damaged (the checksum of pictures.rgbx is wrong)"),
        ("cut", "damaged (pictures.rgbx has 100 bytes of 9628)"),
        ("gone", "damaged (pictures.rgbx can't be read: No such file or directory)"),
        ("sidecar", "damaged (pictures.json can't be read)"),
    ],
)
def test_a_store_that_is_stale_or_damaged_is_decoded_anew(
    spoil, problem, pictures, tmp_path, capsys
):
    paths, sizes = pictures
    folder = tmp_path / "store"
    open_store("disk", folder, paths, sizes)
    kept = folder / "pictures.rgbx"
    if spoil == "picture":
        Image.new("RGB", (9, 6), (1, 2, 3)).save(paths[0])
    elif spoil == "name":
        paths[0] = paths[0].rename(tmp_path / "other.png")
    elif spoil == "byte":
        content = bytearray(kept.read_bytes())
        content[500] ^= 1
        kept.write_bytes(content)
    elif spoil == "cut":
        kept.write_bytes(kept.read_bytes()[:100])
    elif spoil == "gone":
        kept.unlink()
    else:
        (folder / "pictures.json").write_text("{")
    with pytest.warns(UserWarning, match="decoded anew") as warned:
        store = open_store("disk", folder, paths, sizes)
    assert [str(each.message) for each in warned] == [
        f"the pictures in {folder} are {problem}: decoded anew"
    ]
    assert torch.equal(store.pixels, ImageStore.from_files(paths, sizes).pixels)
    capsys.readouterr()
    open_store("disk", folder, paths, sizes)
    assert "read from" in capsys.readouterr().out


def test_a_store_in_use_is_not_touched_by_one_that_takes_its_place(pictures, tmp_path):
    paths, sizes = pictures
    store = open_store("disk", tmp_path / "store", paths, sizes)
    before = store.pixels.clone()
    with pytest.warns(UserWarning, match="stale"):
        open_store("disk", tmp_path / "store", paths[1:], sizes[1:])
    assert torch.equal(store.pixels, before)


def test_a_folder_that_cannot_be_written_to_is_refused(pictures):
    with pytest.raises(BadInput, match=r"can't be written \(Not a directory\); .*store_folder"):
        open_store("disk", Path("/dev/null/store"), *pictures)
    with pytest.raises(BadInput, match=r"/proc/self: can't be written|lock: can't be written"):
        open_store("disk", Path("/proc/self"), *pictures)


def test_pixels_that_do_not_fit_the_disk_are_refused_before_they_are_decoded(
    pictures, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match=r"0.00963 MB of pixels don't fit into the 0.005 MB"):
        open_store("disk", tmp_path / "store", *pictures)
    assert leftovers(tmp_path / "store") == ["lock"]


def test_a_disk_that_fills_up_leaves_nothing_and_is_told(pictures, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(BadInput, match=r"pictures\.rgbx: can't be written .*store_folder"):
            open_store("disk", tmp_path / "store", *pictures)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(tmp_path / "store") == ["lock"]
    assert not alive()


def test_a_picture_that_is_broken_leaves_the_store_of_before(pictures, tmp_path):
    paths, sizes = pictures
    open_store("disk", tmp_path / "store", paths, sizes)
    before = (tmp_path / "store" / "pictures.rgbx").read_bytes()
    paths[3].write_bytes(paths[3].read_bytes()[:80])
    with (
        pytest.warns(UserWarning, match="stale"),
        pytest.raises(BadInput, match=r"3\.png: the picture can't be decoded"),
    ):
        open_store("disk", tmp_path / "store", paths, sizes)
    assert (tmp_path / "store" / "pictures.rgbx").read_bytes() == before
    paths[3].unlink()
    with pytest.raises(BadInput, match=r"3\.png: can't be read"):
        open_store("disk", tmp_path / "store", paths, sizes)


def test_of_several_that_need_a_store_one_decodes_it(pictures, tmp_path, capsys):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_store("disk", tmp_path / "s", *pictures), range(4)))
    said = capsys.readouterr().out
    assert said.count("decoded into") == 1
    assert all(torch.equal(store.pixels, stores[0].pixels) for store in stores)


def test_what_a_killed_process_left_is_removed(pictures, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".pictures.rgbx.123.tmp").touch()
    (tmp_path / "s" / ".mine.123.tmp").touch()
    open_store("disk", tmp_path / "s", *pictures)
    assert leftovers(tmp_path / "s") == [".mine.123.tmp", "lock", "pictures.json", "pictures.rgbx"]


def test_each_data_set_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    a, b = usual_folder(Path("one/data")), usual_folder(Path("two/data"))
    assert a != b
    assert a == usual_folder(Path("one/../one/data"))
    assert a.parent == tmp_path / "lightning_bbox"


@pytest.mark.parametrize(
    ("needed", "room", "processes", "disk", "place"),
    [
        (5, Room(8, 8, shared=True), 1, True, "device"),
        (6, Room(8, 8, shared=True), 1, True, "device"),
        (7, Room(8, 8, shared=True), 1, True, "disk"),
        (7, Room(8, 8, shared=True), 1, False, "device"),
        (3, Room(8, 8, shared=True), 2, True, "device"),
        (4, Room(8, 8, shared=True), 2, True, "disk"),
        (4, Room(8, 64, shared=False), 1, True, "device"),
        (5, Room(8, 64, shared=False), 1, True, "pinned"),
        (5, Room(8, 64, shared=False), 8, True, "pinned"),
        (7, Room(80, 64, shared=False), 8, True, "disk"),
        (60, Room(80, 64, shared=False), 1, True, "disk"),
        (60, Room(80, 64, shared=False), 1, False, "pinned"),
    ],
)
def test_auto_takes_the_first_place_with_room(needed, room, processes, disk, place):
    room = room._replace(device=room.device * GB, host=room.host * GB)
    found, why = choose_place(needed * GB, room, processes, disk)
    assert found == place
    assert f"{needed} GB of pixels" in why
    assert "free" in why


def meminfo(root, files):
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  8000 kB\n"} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8_192_000),
        ({"proc/self/cgroup": "0::/a/b\n"}, 8_192_000),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "3000000",
                "sys/fs/cgroup/a/memory.current": "1000000",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 200\n",
            },
            2_000_200,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "max",
                "sys/fs/cgroup/memory.current": "1000000",
                "sys/fs/cgroup/memory.stat": "anon 5\n",
            },
            8_192_000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/seen/from/outside\n1:cpu:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000",
                "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 3000\n",
            },
            2000,
        ),
    ],
)
def test_free_memory_is_that_of_the_container(files, free, tmp_path):
    assert free_host_memory(meminfo(tmp_path, files)) == free


def test_without_proc_all_memory_counts_as_free(tmp_path):
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert free_host_memory(tmp_path) == pages >= measure_room(CPU).host > 0
    assert measure_room(CPU).shared


def same(first, second):
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for a, b in pairs if a is not None)


@pytest.mark.parametrize("place", ["pinned", "disk"])
@pytest.mark.parametrize("ranks", [(0, 1), (1, 3)])
def test_crops_cut_ahead_are_those_of_the_device_to_the_bit(place, ranks, rectangles):
    here, there = rectangles(store="device"), rectangles(store=place)
    assert not here.stays
    assert there.stays
    for data in (here, there):
        data.ranks = lambda: ranks
    for split, epochs in (("train", (0, 1)), ("val", (0,)), ("test", (0,))):
        for epoch in epochs:
            walk = there._loader(split, lambda epoch=epoch: (epoch, 0))
            assert all(rows.crops is not None for rows in walk)
            pairs = zip(
                here.batches(split, epoch, CPU), there.batches(split, epoch, CPU), strict=True
            )
            assert all(same(a, b) for a, b in pairs)
    assert not alive()


def test_the_default_type_that_a_network_sets_while_it_steps_has_no_part_in_crops(rectangles):
    for supersample in (1, 2):
        data = rectangles(crop=CropGeometry(size=24, supersample=supersample))
        samples = data.samples("train")
        expected = data.cut(samples)
        for default in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(default)
            try:
                crops = data.cut(samples)
            finally:
                torch.set_default_dtype(torch.float32)
            assert torch.equal(crops, expected)


def test_rows_of_several_steps_get_the_crops_of_each(rectangles):
    data = rectangles(store="pinned")
    rows = next(iter(data.train_dataloader()))
    two = torch.stack([torch.arange(8), torch.arange(8, 16)])
    stacked = data._cutter(rows)(rows._replace(rows=two))
    assert stacked.tensor.shape == (2, 8, 3, 24, 24)
    assert torch.equal(stacked.tensor[0], rows.crops.tensor)


class Watch(pl.Callback):
    """Keep the crops that were trained on."""

    def __init__(self):
        self.crops = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.crops.append(batch.crops)  # of a step; rows of several have them cut or not


class Crash(pl.Callback):
    """Fail in the third step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert alive()
        if batch_idx == 2:
            msg = "crash"
            raise RuntimeError(msg)


def train(data, *callbacks, model=None, **options):
    watch = Watch()
    model = model or BoxRegressor(ShallowConvNet(channels=(4, 8), fc=(8,)), compile=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 2}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[watch, *callbacks], **quiet | options)
    trainer.fit(model, data)
    return watch.crops


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_the_precision_of_the_network_does_not_round_crops_cut_ahead(precision, rectangles):
    here, there = (
        train(rectangles(store=place), precision=precision, limit_val_batches=0)
        for place in ("device", "pinned")
    )
    assert len(here) == 10
    assert same(here, there)


def test_several_steps_a_batch_take_the_crops_cut_ahead(rectangles):
    weights = []
    for place in ("device", "pinned"):
        model = BoxRegressor(
            ShallowConvNet(channels=(4, 8), fc=(8,)), compile=False, steps_per_call=3
        )
        train(rectangles(store=place), model=model, limit_val_batches=0)
        weights.append([weight.detach() for weight in model.parameters()])
    assert same(*weights)
    assert not alive()


def test_the_thread_ends_with_a_run_that_fails(rectangles):
    with pytest.raises(RuntimeError, match="crash"):
        train(rectangles(store="disk"), Crash())
    assert not alive()


def test_an_error_in_the_thread_is_raised_in_the_run(rectangles):
    data, cuts = rectangles(store="pinned"), []

    def cut(samples):
        cuts.append(len(samples.items))
        if cuts.count(8) == 3:  # after the statistics, in the third step
            msg = "no such crop"
            raise LookupError(msg)
        return BoxDataModule.cut(data, samples)

    data.cut = cut
    with pytest.raises(LookupError, match="no such crop"):
        train(data)
    assert not alive()


def fit(folder, name, *options):
    args = ["fit", "-c", "preset:csv", f"--data.root={folder / 'data'}", f"--runs={folder}"]
    args += [f"--data.store_folder={folder / 'store'}", "--trainer.max_epochs=2", *options]
    return main([*args, f"--name={name}", *TINY])


@pytest.mark.usefixtures("rectangles")
def test_a_run_from_disk_stopped_in_mid_epoch_ends_as_one_on_the_device_that_was_not(
    tmp_path, capsys, monkeypatch
):
    assert fit(tmp_path, "whole", "--data.store=device") == 0
    rooms = {"little": Room(400_000, 400_000, shared=True), "much": Room(GB, GB, shared=True)}
    monkeypatch.setattr(data_module, "measure_room", lambda _: rooms["little"])
    assert fit(tmp_path, "cut", *interfered("training", 6, 2)) == 130
    assert not alive()
    said = capsys.readouterr().out
    assert "store: auto is disk here (0.461 MB of pixels are more than three quarters" in said
    assert "pictures decoded into" in said
    monkeypatch.setattr(data_module, "measure_room", lambda _: rooms["much"])
    assert resume(tmp_path / "cut") == 0
    assert not alive()
    said = capsys.readouterr().out
    assert "store: auto is device here" in said
    assert "store: disk, as this run began" in said
    assert "pictures read from" in said
    assert equal(tmp_path / "cut", tmp_path / "whole")
    kept = read_checkpoint(tmp_path / "cut/checkpoints/last.ckpt")["BoxDataModule"]
    assert kept == {"store": "disk"}


def test_auto_chooses_the_device_and_says_nothing_outside_of_a_run(rectangles, capsys):
    data = rectangles()
    assert not data.stays
    assert type(data.source.store) is ImageStore
    assert capsys.readouterr().out == ""


def test_what_was_read_for_another_device_is_placed_anew(rectangles, monkeypatch, capsys):
    data = rectangles()
    pixels = data.source.store.pixels
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    monkeypatch.setattr(data, "_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(data_module, "measure_room", lambda _: Room(500_000, GB, shared=False))
    data.trainer = trainer
    data.setup("fit")
    assert data.stays
    assert data.source.store.pixels is pixels
    assert "store: auto is pinned here" in capsys.readouterr().out


def test_where_the_first_process_keeps_pixels_all_do(rectangles, capsys):
    data = rectangles()
    data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    data.trainer.strategy.broadcast = lambda choice: ("pinned", f"not {choice[0]}")
    assert data.stays
    assert capsys.readouterr().out == "store: auto is pinned here (not device)\n"


def test_features_of_a_frozen_backbone_are_computed_on_crops_cut_ahead(rectangles):
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    net = OffsetNet(ChannelNorm(), ShallowConvNet(channels=(4,), fc=(8,)).build(24), BinHead())
    found = []
    for place in ("device", "disk"):
        data = rectangles(store=place)
        data.trainer = trainer
        found.append(compute_features(data, "val", net))
    assert torch.equal(*found)
    assert not alive()


def test_patches_stay_on_the_host_where_asked(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 26, 26, 3), dtype=np.uint8)
    np.save(tmp_path / "patches.npy", pixels)
    small = {"batch_size": 8, "draws_per_epoch": 32, "eval_draws": 8, "compile": False}
    here, there, auto = (
        PatchDataModule(str(tmp_path / "patches.npy"), store=store, **small)
        for store in ("device", "pinned", "auto")
    )
    assert [data.stays for data in (here, there, auto)] == [False, True, False]
    pairs = zip(here.batches("train", 1, CPU), there.batches("train", 1, CPU), strict=True)
    assert all(same(a, b) for a, b in pairs)


def test_the_sidecar_tells_what_the_pixels_were_made_of(pictures, tmp_path):
    open_store("disk", tmp_path / "store", *pictures)
    said = json.loads((tmp_path / "store" / "pictures.json").read_text())
    assert said["key"].keys() == {"pictures", "contents", "packing"}
    assert said["bytes"] == 4 * int(pictures[1].prod(dim=1).sum())
