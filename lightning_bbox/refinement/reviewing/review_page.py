"""The page to review moved boxes: one file with their pictures, in which a person decides."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.write import Decimals, decimals_of
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import encoded, write_atomically
from lightning_bbox.core.messages import printable
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import White
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.pictures.decode import Decoded, open_image
from lightning_bbox.reports.pages import page

PAGE = "review.html"
MOST_REVIEWED = 5000
"""Boxes on a page by default: some 30 MB, which a browser still turns the pages of at once."""

_AROUND = CropGeometry(size=192, context=1.6, square=True)  # what is seen of a box
_LEAST_SIDE = 96
_QUALITY = 80  # of the JPEGs: some 4 KB each
_OUTSIDE = (128, 128, 128)
_HERE = Path(__file__).parent


class Moved(NamedTuple):
    """Where the boxes of a table should be, as a person is to see it.

    Attributes:
        boxes: The new box of each of the table's, as files would hold it, `xyxy` in pixels.
        order: Those that moved, the first to look at first.
        wrong: Probability that each of the table's boxes was wrong, NaN where nobody knows.
        gain: Rise of its expected IoU with the truth, likewise.
        decimals: How many decimals of a pixel are written.
    """

    boxes: Boxes
    order: list[int]
    wrong: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]
    decimals: Decimals = "auto"


def likeliest_first(
    rows: Sequence[int],
    wrong: Float[Tensor, " n"],
    gain: Float[Tensor, " n"],
    shifts: Float[Tensor, "n 2"],
) -> list[int]:
    """Order boxes by how probably they were wrong, then by gain, then by how far they moved.

    Args:
        rows: Which boxes.
        wrong: Probability that a box was wrong, NaN where nobody knows.
        gain: Rise of its expected IoU, likewise.
        shifts: How far its centre moved along x and y.

    Examples:
        >>> wrong = torch.tensor([0.5, 0.9, torch.nan, torch.nan])
        >>> shifts = torch.tensor([[9.0, 0], [0, 0], [1, 1], [0, 3]])
        >>> likeliest_first([0, 1, 2, 3], wrong, wrong, shifts)
        [1, 0, 3, 2]
    """
    known = [each.nan_to_num(-1.0).tolist() for each in (wrong, gain, shifts.norm(dim=1))]
    return sorted(rows, key=lambda at: [-column[at] for column in known])


def refuse_most(most: int) -> None:
    """Refuse a number of boxes that a page can't have.

    Raises:
        BadInput: It is below 0.
    """
    if most < 0:
        msg = f"review is {most}; expected how many boxes its page may have, 0 for no page"
        raise BadInput(msg)


def write_review(folder: Path, data: BoxDataModule, moved: Moved, most: int = MOST_REVIEWED) -> str:
    """Write `review.html` and say where it is, how many boxes it has, and its size.

    Args:
        folder: Where to.
        data: A data module that has read the boxes.
        moved: Where they should be.
        most: How many boxes the page may have, the first in their order; 0 writes none.

    Raises:
        BadInput: The folder can't be written to, or a picture can't be decoded.
    """
    assert data.rough is not None
    if not most:
        (folder / PAGE).unlink(missing_ok=True)  # one of before says something else
        return "no page, as --review 0 asks for none"
    table = data.rough.table
    shown = moved.order[:most]
    entries = _entries(table, moved, shown)
    asked = {
        "root": str(data.root),
        "reading": vars(data.reading),
        "proposals": data.proposals,
        "decimals": moved.decimals,
        "left": len(moved.order) - len(shown),
    }
    key = hashlib.sha256(json.dumps([asked, entries]).encode()).hexdigest()[:24]
    views = _views(table.boxes[shown], moved.boxes[shown])
    pictures = _pictures(table, shown, views, data.white_level)
    told = {"key": key, **asked, "boxes": entries, "views": views, "pictures": pictures}
    content = json.dumps(told)
    name = printable(data.root.resolve().name or str(data.root))
    body = (_HERE / "review.html").read_text(encoding="utf-8").replace("$NAME", html.escape(name))
    held = content.replace("<", "\\u003c")  # no text ends the element, or begins a comment
    held = f'<script type="application/json" id="data">{held}</script>'
    script, style = (
        (_HERE / f"review.{kind}").read_text(encoding="utf-8") for kind in ("js", "css")
    )
    text = encoded(page(f"Review of {name}", [body, held], script, style))
    write_atomically(folder / PAGE, text)
    left = f", the first of {len(moved.order)} (--review)" if asked["left"] else ""
    return f"{folder / PAGE} ({len(shown)} boxes{left}, {len(text) / 1e6:.1f} MB)"


def _views(old: Boxes, new: Boxes) -> list[list[float]]:
    """Return what is to be seen around each box, old and new: a square, `xyxy` in pixels."""
    both = torch.stack([old, new])
    around = torch.cat([both[..., :2].amin(dim=0), both[..., 2:].amax(dim=0)], dim=1)
    views: list[list[float]] = _AROUND.crop_boxes(around).tolist()
    return views


def _entries(table: BoxTable, moved: Moved, shown: list[int]) -> list[dict[str, object]]:
    """Return what the page knows of each box."""
    digits = decimals_of(table, moved.decimals).tolist()
    entries = []
    for at in shown:
        picture = int(table.image_index[at])
        wrong, gain = (
            None if each[at].isnan() else round(float(each[at]), 4)
            for each in (moved.wrong, moved.gain)
        )
        entry = {"row": at, "id": table.ids[at], "image": table.images[picture]}
        entry |= {"label": table.classes[table.labels[at]], "size": table.sizes[picture].tolist()}
        entry |= {"old": table.boxes[at].tolist(), "new": moved.boxes[at].tolist()}
        entries.append(entry | {"wrong": wrong, "gain": gain, "digits": digits[at]})
    return entries


def _pictures(
    table: BoxTable, shown: list[int], views: list[list[float]], white_level: White | None
) -> list[str]:
    """Return what is seen around each box as JPEG in base64; each picture is decoded once."""
    found = [""] * len(shown)
    picture_of = table.image_index[shown].tolist()
    opened, picture = -1, None
    for row in sorted(range(len(shown)), key=picture_of.__getitem__):
        if picture is None or picture_of[row] != opened:
            opened = picture_of[row]
            path = table.root / table.images[opened]
            picture = open_image(path, white_level, table.part)
        buffer = BytesIO()
        seen(picture, views[row]).save(buffer, format="JPEG", quality=_QUALITY)
        found[row] = base64.b64encode(buffer.getvalue()).decode()
    return found


def seen(picture: Decoded, view: list[float]) -> Image.Image:
    """Cut a view out of a picture, grey where that has ended, enlarged where it is small.

    Args:
        picture: The picture.
        view: A square, `xyxy` in pixels.

    Examples:
        >>> import numpy as np
        >>> picture = np.full((100, 100, 3), 255, np.uint8)
        >>> shown = seen(picture, [-50.0, 0.0, 50.0, 100.0])
        >>> shown.size, shown.getpixel((49, 50)), shown.getpixel((50, 50))
        ((100, 100), (128, 128, 128), (255, 255, 255))
    """
    left, top, right, _ = view
    side = max(_LEAST_SIDE, min(_AROUND.size, round(right - left)))
    scale = (right - left) / side
    spans = [
        _span(low, scale, side, limit)
        for low, limit in ((left, picture.shape[1]), (top, picture.shape[0]))
    ]
    whole = Image.new("RGB", (side, side), _OUTSIDE)
    (x, across, from_x, to_x), (y, down, from_y, to_y) = spans
    if across > 0 and down > 0:
        first_x, first_y = math.floor(from_x), math.floor(from_y)
        there = picture[first_y : math.ceil(to_y), first_x : math.ceil(to_x)]
        box = (from_x - first_x, from_y - first_y, to_x - first_x, to_y - first_y)
        part = Image.fromarray(there).resize((across, down), Image.Resampling.BILINEAR, box=box)
        whole.paste(part, (x, y))
    return whole


def _span(low: float, scale: float, side: int, limit: int) -> tuple[int, int, float, float]:
    """Return which whole pixels of a view lie in a picture, along an axis, and where there."""
    first = max(0, math.ceil(-low / scale))
    last = min(side, math.floor((limit - low) / scale))
    begin, end = low + first * scale, low + last * scale
    return first, last - first, max(0.0, begin), min(float(limit), end)
