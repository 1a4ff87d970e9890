"""Headers of pictures are read without what they head."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile, ImageOps

from lightning_bbox.annotations import headers
from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.headers import read_header


class CountedFile(io.FileIO):
    """A file that counts the bytes that are read of any."""

    total = 0

    def read(self, size=-1):
        content = super().read(size)
        CountedFile.total += len(content)
        return content

    def readinto(self, buffer):
        count = super().readinto(buffer)
        CountedFile.total += count
        return count


def counted(path, mode="rb", buffering=-1):
    raw = CountedFile(path, mode)
    return raw if buffering == 0 else io.BufferedReader(raw)


def with_chunk(content, kind, data, late):
    """Put a chunk into a PNG, before its pixels or behind them."""
    chunk = struct.pack(">I", len(data)) + kind + data
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    place = content.index(b"IEND" if late else b"IDAT") - 4
    return content[:place] + chunk + content[place:]


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
EXIF = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 6, 0)
RAW = b"\nexif\n" + b"%8d" % (len(EXIF) + 6) + b"\n" + (b"Exif\0\0" + EXIF).hex().encode() + b"\n"
CHUNKS = {
    "text": (b"tEXt", b"Software\0any", False),
    "eXIf": (b"eXIf", EXIF, True),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, True),
    "ImageMagick's": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW), True),
}


@pytest.mark.parametrize("late", [False, True], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("name", CHUNKS)
def test_pngs_are_turned_by_any_of_their_chunks_and_are_not_read_whole(
    tmp_path, monkeypatch, name, late
):
    kind, data, turns = CHUNKS[name]
    path = tmp_path / "a.png"
    Image.effect_noise((1100, 900), 99).save(path)
    path.write_bytes(with_chunk(path.read_bytes(), kind, data, late))
    with Image.open(path) as image:
        assert ImageOps.exif_transpose(image).size == ((900, 1100) if turns else (1100, 900))
    monkeypatch.setattr(Path, "open", counted)
    monkeypatch.setattr(CountedFile, "total", 0)
    if not (turns and late):
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it is decoded"))
    header = read_header(tmp_path, "a.png", Picture("b.csv", "b.csv:2"))
    assert (header.height, header.width) == ((1100, 900) if turns else (900, 1100))
    whole = path.stat().st_size
    assert whole > 500_000
    assert CountedFile.total < (3 * whole if turns and late else 20_000)


def test_headers_of_many_pictures_are_kept_until_these_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(headers, "_MANY", 3)
    root = tmp_path / "set"
    root.mkdir()
    names = [f"{n}.png" for n in range(200)]
    for name in names:
        Image.new("L", (6, 4)).save(root / name)
    (root / "7.png").write_bytes(b"no")
    first = headers.read_facts(root, names)
    assert list(first) == names
    assert isinstance(first["7.png"], headers.Unread)
    assert first["8.png"] == headers.Facts(6, 4, 1, "PNG", "L", False, "")
    opened = []
    read = headers._facts
    monkeypatch.setattr(headers, "_facts", lambda *one: opened.append(one[1]) or read(*one))
    assert headers.read_facts(root, names) == first
    assert opened == ["7.png"]
    Image.new("RGB", (9, 8)).save(root / "3.png")
    again = headers.read_facts(root, names)
    assert sorted(opened) == ["3.png", "7.png", "7.png"]
    assert again["3.png"].upright == (8, 9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 23)
    assert all(isinstance(one, headers.Unread) for one in headers.read_facts(root, names).values())
    (file,) = (tmp_path / "cache").rglob("headers.json")
    file.write_bytes(file.read_bytes()[:-20])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    assert headers.read_facts(root, names) == again
