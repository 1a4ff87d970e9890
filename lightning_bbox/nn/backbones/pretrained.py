"""Pretrained weights: found or fetched, read without running code, and compared with the net."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import expanded

WEIGHTS_VARIABLE = "LIGHTNING_BBOX_WEIGHTS"
"""Environment variable with the folder of weights, where no other is named."""

FILES = {"caffe": "alexnet_caffe_conv_int8.npz", "imagenet": "alexnet-owt-7be5be79.pth"}
"""The weights that have a name, and their files."""

_URL = f"https://download.pytorch.org/models/{FILES['imagenet']}"
_HASH = "7be5be79"  # how the SHA-256 of the file begins; its name says so, as all of torch's do
_FIXED_POINT = 128  # int8 holds weights to +-1, and int16 biases beyond
_REMEDY = "give a file that holds a net's state_dict() alone"
_WITHIN = (
    "state_dict",
    "model_state_dict",
    "model",
)  # what training scripts call it in their files
_MOST_READ = 2**20  # bytes to hash at once


def find_weights(name: str, weights_dir: str | None = None) -> Path:
    """Return the file that a name or a path of weights means; `imagenet` is fetched if need be.

    Args:
        name: `caffe`, `imagenet`, or the path of a file.
        weights_dir: The folder to look for the named ones in; `$LIGHTNING_BBOX_WEIGHTS` by default.

    Raises:
        BadInput: It isn't there and can't be fetched, or isn't what its name says.
    """
    asked = weights_dir or os.environ.get(WEIGHTS_VARIABLE)
    folder = str(expanded(asked)) if asked else None
    if name not in FILES:
        path = expanded(name)
    elif folder is not None and Path(folder, FILES[name]).exists():
        path = Path(folder, FILES[name])
    elif name == "imagenet":
        path = _fetched(folder)
    else:
        where = f"isn't in {folder}; put it there, or" if folder else "is in no known folder;"
        msg = (
            f"weights {name!r}: {FILES[name]} {where} name its folder by weights_dir or "
            f"{WEIGHTS_VARIABLE}"
        )
        raise BadInput(msg)
    if path.name == FILES["imagenet"] and path.is_file() and not _sha256(path).startswith(_HASH):
        msg = (
            f"{path}: isn't the file of that name (its SHA-256 doesn't begin with {_HASH}); "
            f"download {_URL} again"
        )
        raise BadInput(msg)
    return path


def _fetched(folder: str | None) -> Path:
    """Return torchvision's weights in torch's own cache, downloaded where they aren't there."""
    path = Path(torch.hub.get_dir(), "checkpoints", FILES["imagenet"])
    if not path.exists():
        try:
            torch.hub.load_state_dict_from_url(
                _URL, map_location="cpu", check_hash=True, weights_only=True
            )
        # No network, a proxy's page instead of the file, a disk that is full.
        except (OSError, RuntimeError) as error:
            place = folder or f"a folder and name it by weights_dir or {WEIGHTS_VARIABLE}"
            msg = (
                f"weights 'imagenet': {_URL} can't be downloaded ({error}); download {path.name} "
                f"where there is a network and put it into {place}"
            )
            raise BadInput(msg) from error
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_MOST_READ):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a file of weights by its suffix, without running any code of its own.

    `.pth` and `.pt` hold a state dict, or one under the key `state_dict`, `model_state_dict` or
    `model`; `.safetensors` holds one;
    `.npz` holds an array for each weight: floating point, or fixed point in units of 1/128.

    Raises:
        BadInput: The file isn't there, can't be read, or holds anything but weights.
    """
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        msg = f"{path}: weights are read from {', '.join(_READERS)}; convert it to one of them"
        raise BadInput(msg)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file of weights"
        raise BadInput.at(str(path), problem, "correct weights=")
    try:
        return read(path)
    except BadInput:
        raise
    # A file that is none, was cut short, or holds code, makes the readers raise any of many errors.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        problem = f"can't be read, it is damaged, of another kind or holds code ({reason})"
        raise BadInput.at(str(path), problem, _REMEDY) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path):  # the format of torch 1.6 and later
        with zipfile.ZipFile(path) as file:
            # torch 2.13 writes the checksums but doesn't compare them.
            if damaged := file.testzip():
                msg = f"the checksum of {damaged} is wrong"
                raise ValueError(msg)
    content = torch.load(path, map_location="cpu", weights_only=True)
    within = [key for key in _WITHIN if isinstance(content, dict) and key in content]
    weights = content[within[0]] if within else content
    if not isinstance(weights, dict):
        problem = f"holds what is of type {type(weights).__name__}, not weights by name"
        raise BadInput.at(str(path), problem, _REMEDY)
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            problem = f"holds {name!r} of type {type(value).__name__}, not a named weight"
            raise BadInput.at(str(path), problem, _REMEDY)
    return dict(weights)


def _read_numpy(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: _from_numpy(arrays[name], f"{path}: {name}") for name in arrays.files}


def _from_numpy(array: np.ndarray, name: str) -> Tensor:
    if array.dtype in (np.int8, np.int16):
        return torch.from_numpy(array.astype(np.float32) / _FIXED_POINT)
    if array.dtype.kind != "f":
        problem = f"is {array.dtype}"
        raise BadInput.at(name, problem, "expected floating point, or int8 or int16 in 1/128")
    return torch.from_numpy(array)


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": safetensors.torch.load_file,
    ".npz": _read_numpy,
}


def refuse_other_weights(
    path: Path | str,
    weights: Mapping[str, Tensor],
    net: Mapping[str, Tensor],
    needed: Collection[str],
) -> None:
    """Refuse weights that aren't those of a net, by their names and shapes.

    Args:
        path: What to call them in an error.
        weights: What was read.
        net: The net's own, of the right shapes.
        needed: Names that must be there; no other than the net's may be.

    Raises:
        BadInput: A weight is missing, unknown, or of another shape.
    """
    remedy = "give weights of the same net"
    if unknown := [name for name in weights if name not in net]:
        raise BadInput.at(str(path), f"holds {listed(unknown)}, which the net lacks", remedy)
    if missing := [name for name in needed if name not in weights]:
        raise BadInput.at(str(path), f"lacks {listed(missing)}", remedy)
    for name, value in weights.items():
        if value.shape != net[name].shape:
            mine, theirs = list(net[name].shape), list(value.shape)
            problem = f"{name} has shape {theirs}, the net's has {mine}"
            raise BadInput.at(str(path), problem, remedy)


def fitting_weights(
    path: str,
    weights: Mapping[str, Tensor],
    net: Mapping[str, Tensor],
    prefix: str = "",
    strict: bool = True,
) -> tuple[dict[str, Tensor], str]:
    """Return weights by a net's own names, and say what was left, or nothing where all fit.

    Args:
        path: What to call them.
        weights: What was read.
        net: The net's own, of the right shapes.
        prefix: What names begin with; it is taken off, and others are left out.
        strict: Refuse to leave any but those without the prefix.

    Raises:
        BadInput: None has the prefix, or none fits, or with `strict`, one doesn't.

    Examples:
        >>> net = {"a": torch.zeros(2), "b": torch.zeros(3)}
        >>> read = {"module.a": torch.ones(2), "module.c": torch.ones(1), "head": torch.ones(1)}
        >>> fitting, said = fitting_weights("x.pth", read, net, "module.", strict=False)
        >>> fitting
        {'a': tensor([1., 1.])}
        >>> print(said)
        weights x.pth: 1 of the net's 2 taken; as it was made: b; left out of the file: module.c,
        head
    """
    named = {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    if not named:
        problem = f"holds no name that begins with {prefix!r}, but such as {listed(list(weights))}"
        raise BadInput.at(path, problem, "correct prefix")
    if strict:
        refuse_other_weights(path, named, net, needed=net)
    fitting = {
        name: value
        for name, value in named.items()
        if name in net and value.shape == net[name].shape
    }
    if not fitting:
        problem = f"holds no weight of the net's; it has {listed(list(named))}"
        raise BadInput.at(path, problem, "give weights of the same net, or say their prefix")
    own = [name for name in net if name not in fitting]
    unused = [
        n for n in weights if not (n.startswith(prefix) and n.removeprefix(prefix) in fitting)
    ]
    parts = [f"as it was made: {listed(own)}"] * bool(own)
    parts += [f"left out of the file: {listed(unused)}"] * bool(unused)
    said = f"weights {path}: {len(fitting)} of the net's {len(net)} taken; {'; '.join(parts)}"
    return fitting, said if parts else ""
