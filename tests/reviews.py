"""Pages to review that tests make without a model, and what they hold."""

import json
import re
from pathlib import Path

import torch

from lightning_bbox import BoxDataModule
from lightning_bbox.annotations.write import Decimals, as_written
from lightning_bbox.refinement.reviewing.review_page import PAGE, Moved, write_review


def reviewed(
    root: Path,
    folder: Path,
    most: int = 5000,
    moves: bool = True,
    decimals: Decimals = "auto",
    **options: object,
) -> Path:
    """Write the page of a data set, each of whose boxes moves, or none, and return it."""
    data = BoxDataModule(str(root), **options)
    data.setup("predict")
    assert data.rough is not None
    table = data.rough.table
    shift = torch.arange(len(table.boxes))[:, None] % 3 + torch.tensor([1.0, 2.0, 1.5, 2.0])
    boxes = (table.boxes + shift).minimum(table.sizes[table.image_index].flip(1).repeat(1, 2))
    boxes = as_written(table, boxes if moves else table.boxes, decimals)
    wrong = torch.linspace(1, 0, len(boxes))
    moved = (boxes != table.boxes).any(dim=1).nonzero().flatten().tolist()
    folder.mkdir(parents=True, exist_ok=True)
    write_review(folder, data, Moved(boxes, moved, wrong, wrong / 2, decimals), most)
    return folder / PAGE


def held_by(page: Path) -> dict:
    """Return what a page knows of its boxes, as its script would."""
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text()
    )
    return json.loads(text)


def decisions_of(page: Path, words: dict[int, str], boxes: dict[int, list[float]] | None = None):
    """Return what the page would save: words by the number of a box, and what was drawn."""
    held = held_by(page)
    told = {name: held[name] for name in ("key", "root", "reading", "proposals", "decimals")}
    each = []
    for at, box in enumerate(held["boxes"]):
        one = {name: box[name] for name in ("id", "old", "new")}
        one["decision"] = words.get(at, "undecided")
        each.append(one | ({"box": boxes[at]} if boxes and at in boxes else {}))
    return {"lightning_bbox": "decisions", "version": 1, **told, "boxes": each}
