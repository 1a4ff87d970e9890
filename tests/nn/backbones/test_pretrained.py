"""Weights are read from their formats, found by their names, and anything else is refused."""

import hashlib
import pickle
import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.nn.backbones import pretrained
from lightning_bbox.nn.backbones.pretrained import (
    FILES,
    find_weights,
    read_weights,
    refuse_other_weights,
)

STATE = {
    "conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2) / 7,
    "conv.bias": torch.tensor([-1.0, 0.5]),
}


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch):
    """No folder of weights, and an empty cache."""
    monkeypatch.delenv("LIGHTNING_BBOX_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def save_old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_arrays(state, path):
    np.savez(path, **{name: value.numpy() for name, value in state.items()})


@pytest.mark.parametrize(
    ("name", "save"),
    [
        *((name, torch.save) for name in ("a.pth", "a.pt", "a.PT")),
        ("a.pth", lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path)),
        ("a.pth", save_old),
        ("a.safetensors", safetensors.torch.save_file),
        ("a.npz", save_arrays),
    ],
)
def test_weights_are_read_as_they_are(tmp_path, name, save):
    numbers = {"double": torch.tensor([0.1]).double(), "half": torch.tensor([[2.0]]).half()}
    numbers["empty"] = torch.tensor([])
    save(STATE | numbers, tmp_path / name)
    weights = read_weights(str(tmp_path / name))
    assert {each: value.dtype for each, value in weights.items()} == {
        each: value.dtype for each, value in (STATE | numbers).items()
    }
    assert all(torch.equal(weights[each], value) for each, value in (STATE | numbers).items())


def test_arrays_of_small_integers_are_fixed_point(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.int8([-128, 1, 127]), b=np.int16([-1000, 168]))
    weights = read_weights(tmp_path / "a.npz")
    assert weights["a"].tolist() == [-1, 1 / 128, 127 / 128]
    assert weights["b"].tolist() == [-1000 / 128, 168 / 128]
    assert weights["a"].dtype == torch.float32


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (Path("ran").touch, ())


SPOILT = {
    "cut short": lambda content: content[:-100],
    "a page": lambda _: b"<html>Not found</html>",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.pth", torch.save),
        ("a.safetensors", safetensors.torch.save_file),
        ("a.npz", save_arrays),
    ],
)
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_files_that_are_spoilt_are_refused_in_one_sentence(tmp_path, name, save, spoil):
    path = tmp_path / name
    save(STATE, path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BadInput, match="can't be read, it is damaged, of") as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; give a file that holds a net's state_dict() alone")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_told_by_the_checksum(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    content[content.index(STATE["conv.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"the checksum of .* is wrong"):
        read_weights(path)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Code()}, "a.pth")
    with Path("b.pth").open("wb") as file:
        pickle.dump(Code(), file)
    np.savez("c.npz", a=np.array([Code()], dtype=object))
    for name in ("a.pth", "b.pth", "c.npz"):
        with pytest.raises(BadInput, match=rf"^{name}: .* or holds code"):
            read_weights(name)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds what is of type list, not weights by name"),
        (torch.zeros(1), "holds what is of type Tensor, not weights by name"),
        ({"epoch": 3, "a": torch.zeros(1)}, "holds 'epoch' of type int, not a named weight"),
        ({"state_dict": 3}, "holds what is of type int, not weights by name"),
        ({1: torch.zeros(1)}, "holds 1 of type Tensor, not a named weight"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path}/a.pth: {message}; give")):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_, "U3"])
def test_arrays_of_other_kinds_are_refused(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", a=np.zeros(2, dtype))
    with pytest.raises(BadInput, match=r"a\.npz: a: is .*; expected floating point, or int8"):
        read_weights(tmp_path / "a.npz")


def test_paths_without_weights_are_refused(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "a.bin").touch()
    for name, message in {
        "a.pth": "no such file of weights; correct weights=",
        "folder.pth": "is a folder; correct weights=",
        "a.bin": r"weights are read from .pth, .pt, .safetensors, .npz; convert it",
    }.items():
        with pytest.raises(BadInput, match=f"{name}: {message}"):
            read_weights(tmp_path / name)


def test_weights_lie_where_their_path_the_folder_or_the_environment_says(tmp_path, monkeypatch):
    assert find_weights(str(tmp_path / "a.pth"), "elsewhere") == tmp_path / "a.pth"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / FILES["caffe"]).touch()
    message = "weights 'caffe': alexnet_caffe_conv_int8.npz is in no known folder; name its folder"
    with pytest.raises(BadInput, match=message):
        find_weights("caffe")
    monkeypatch.setenv("LIGHTNING_BBOX_WEIGHTS", str(tmp_path / "a"))
    assert find_weights("caffe") == tmp_path / "a" / FILES["caffe"]
    assert find_weights("caffe", str(tmp_path / "b")) == tmp_path / "b" / FILES["caffe"]
    with pytest.raises(BadInput, match=f"isn't in {tmp_path}; put it there, or name"):
        find_weights("caffe", str(tmp_path))


def test_torchvisions_file_must_have_the_hash_of_its_name(tmp_path, monkeypatch):
    path = tmp_path / FILES["imagenet"]
    path.write_bytes(b"other weights")
    for name, folder in (("imagenet", str(tmp_path)), (str(path), None)):
        with pytest.raises(BadInput, match=r"its SHA-256 doesn't begin with 7be5be79\); download"):
            find_weights(name, folder)
    monkeypatch.setattr(pretrained, "_HASH", hashlib.sha256(b"other weights").hexdigest()[:8])
    assert find_weights("imagenet", str(tmp_path)) == path


def test_what_can_not_be_downloaded_is_said_with_what_to_put_where(tmp_path, monkeypatch):
    calls, errors = [], [urllib.error.URLError("Name or service not known")] * 2
    errors.append(RuntimeError("invalid hash value"))  # what came isn't the file

    def refuse(url, **arguments):
        calls.append((url, arguments))
        raise errors[len(calls) - 1]

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(BadInput, match=f"put it into {tmp_path}$") as caught:
        find_weights("imagenet", str(tmp_path))
    assert "Name or service not known" in str(caught.value)
    assert "download alexnet-owt-7be5be79.pth where there is a network" in str(caught.value)
    with pytest.raises(BadInput, match="put it into a folder and name it by weights_dir or LIGHT"):
        find_weights("imagenet")
    with pytest.raises(BadInput, match=r"can't be downloaded \(invalid hash value\)"):
        find_weights("imagenet")
    url, arguments = calls[0]
    assert url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    assert arguments["check_hash"]
    assert arguments["weights_only"]


def test_a_download_lies_in_torchs_cache_and_is_fetched_once(tmp_path, monkeypatch):
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    calls = []

    def download(url, **_):
        calls.append(url)
        cache.mkdir(parents=True)
        (cache / FILES["imagenet"]).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    monkeypatch.setattr(pretrained, "_HASH", hashlib.sha256(b"weights").hexdigest()[:8])
    for _ in range(2):
        assert find_weights("imagenet") == cache / FILES["imagenet"]
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (STATE | {"fc.weight": torch.zeros(1)}, "holds fc.weight, which the net lacks"),
        ({"conv.bias": STATE["conv.bias"]}, "lacks conv.weight"),
        (STATE | {"conv.bias": torch.zeros(3)}, "conv.bias has shape [3], the net's has [2]"),
        ({}, "lacks conv.weight, conv.bias"),
    ],
)
def test_weights_of_another_net_are_refused_but_for_what_is_not_needed(weights, message):
    with pytest.raises(BadInput, match=re.escape(f"a.pth: {message}; give weights of the same")):
        refuse_other_weights("a.pth", weights, STATE, needed=STATE)
    refuse_other_weights("a.pth", {"conv.bias": torch.zeros(2)}, STATE, needed=["conv.bias"])


def test_a_tilde_is_the_home_folder_of_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / FILES["caffe"]).touch()
    assert find_weights("caffe", "~") == tmp_path / FILES["caffe"]
    assert find_weights("~/own.pth") == tmp_path / "own.pth"
