"""Files of patches: the arrays that are needed, within what a file can hold, or one sentence."""

import io
import math
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.memory import free_host_memory
from lightning_bbox.pictures.places import told

_NEEDED = ("patches", "groups", "offsets")
_MOST_DEFLATED = 1032  # bytes that a byte of a deflated stream can become
_PIECE = 1 << 20  # bytes that are read at once
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_patches(
    path: Path,
) -> tuple[
    UInt8[np.ndarray, "n h w 3"], Shaped[np.ndarray, " n"], Float32[np.ndarray, "n 2"] | None
]:
    """Read and check patches, groups and, where the file has them, offsets.

    Grey patches are a view whose three channels are one in memory.

    Args:
        path: An npy or npz file (see `PatchDataModule`).

    Raises:
        BadInput: The file is missing or damaged, claims more than it holds or than there is
            memory, or its arrays aren't those of patches.
    """
    arrays = _read_arrays(path)
    patches = _as_rgb(arrays["patches"], path)
    groups = arrays.get("groups", np.arange(len(patches)))
    if groups.shape != (len(patches),):
        msg = f"{path}: groups have shape {groups.shape}; expected ({len(patches)},), one a patch"
        raise BadInput(msg)
    offsets = arrays.get("offsets")
    return patches, groups, None if offsets is None else _as_offsets(offsets, patches, path)


def _as_rgb(patches: np.ndarray, path: Path) -> UInt8[np.ndarray, "n h w 3"]:
    if patches.ndim != 4 or patches.dtype != np.uint8:
        msg = (
            f"{path}: patches are {patches.dtype} of shape {patches.shape}; "
            f"expected uint8, N x H x W x C or N x C x H x W"
        )
        raise BadInput(msg)
    if patches.shape[-1] not in (1, 3) and patches.shape[1] in (1, 3):
        patches = patches.transpose(0, 2, 3, 1)
    if patches.shape[-1] not in (1, 3):
        msg = f"{path}: patches of shape {patches.shape} have neither 1 nor 3 channels"
        raise BadInput(msg)
    return np.broadcast_to(patches, (*patches.shape[:3], 3))


def _as_offsets(
    offsets: np.ndarray, patches: UInt8[np.ndarray, "n h w 3"], path: Path
) -> Float32[np.ndarray, "n 2"]:
    count, height, width, _ = patches.shape
    if (
        offsets.shape != (count, 2)
        or offsets.dtype.kind not in "fiu"
        or not np.isfinite(offsets).all()
    ):
        msg = (
            f"{path}: offsets have shape {offsets.shape}; "
            f"expected ({count}, 2), finite, x and y in px"
        )
        raise BadInput(msg)
    outside = (np.abs(offsets) > (width / 2, height / 2)).any(axis=1)
    if outside.any():
        first = int(outside.argmax())
        x, y = offsets[first].tolist()
        problem = (
            f"{int(outside.sum())} of {count} offsets lead out of their patches of {height} x "
            f"{width}, such as ({x:g}, {y:g}) of patch {first}"
        )
        raise BadInput.at(str(path), problem, "give x and y in px, from the patch's centre")
    return offsets.astype(np.float32)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays that are needed, by name; `patches` is among them."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                return {"patches": _read_array(file, size)}
            with ZipFile(file) as archive:
                return _read_members(archive, size, path)
    except BadInput:
        raise
    except FileNotFoundError as error:
        msg = f"{path}: no such file; set data.file to an npy or npz of patches"
        raise BadInput(msg) from error
    # Of what is damaged or no such file zipfile, zlib, tokenize and NumPy raise any of many errors.
    except Exception as error:
        why = str(error) or type(error).__name__
        msg = f"{path}: can't be read as npy or npz ({why}); write it with numpy.savez"
        raise BadInput(msg) from error


def _read_members(archive: ZipFile, size: int, path: Path) -> dict[str, np.ndarray]:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    if "patches" not in members:
        msg = f"{path}: has no key 'patches', only {listed(sorted(members))}"
        raise BadInput(msg)
    arrays = {}
    for name in _NEEDED:
        if name in members:
            _refuse_impossible(members[name], size)
            with archive.open(members[name]) as stream:
                arrays[name] = _read_array(stream, members[name].file_size)
    return arrays


def _refuse_impossible(member: ZipInfo, size: int) -> None:
    """Refuse an array whose compressed bytes can't become as many as the archive says."""
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        msg = f"{member.filename} is compressed in a way that numpy.savez doesn't use"
        raise ValueError(msg)
    factor = _MOST_DEFLATED if member.compress_type == ZIP_DEFLATED else 1
    if member.file_size > factor * min(member.compress_size, size):
        msg = (
            f"{member.filename} claims {told(member.file_size)}, more than its "
            f"{told(min(member.compress_size, size))} in the file can become"
        )
        raise ValueError(msg)


def _read_array(stream: IO[bytes], size: int) -> np.ndarray:
    """Read one array in NumPy's format, which must fill what there is of it.

    Args:
        stream: At its beginning.
        size: How many bytes there are.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        msg = f"its format has version {version[0]}.{version[1]}"
        raise ValueError(msg)
    shape, by_column, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        msg = "Object arrays can't be loaded safely"
        raise ValueError(msg)
    needed, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or needed != there:
        msg = f"an array of shape {shape} takes {needed} bytes, but there are {there}"
        raise ValueError(msg)
    if needed > (free := free_host_memory()):
        msg = f"it takes {told(needed)} of memory, and {told(free)} are free"
        raise ValueError(msg)
    content = np.empty(needed, dtype=np.uint8)
    rest = content.data
    while rest and (piece := stream.read(min(len(rest), _PIECE))):
        rest[: len(piece)] = piece
        rest = rest[len(piece) :]
    if rest or stream.read(1):  # zipfile compares the checksum at the end
        msg = f"{len(rest)} of {needed} bytes are missing"
        raise ValueError(msg)
    return content.view(dtype).reshape(shape, order="F" if by_column else "C")
