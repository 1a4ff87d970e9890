"""Sheets of crops: with their boxes, and of what a preprocessing makes of them."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.loader import Rows, Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.evaluation.evaluation import Evaluation
from lightning_bbox.evaluation.metrics import error_px
from lightning_bbox.geometry.boxes import Boxes, box_sizes
from lightning_bbox.geometry.codecs import FULL_SCALE, White
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.nn.preprocess import Preprocess
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.store import PictureFiles

Colour = tuple[int, int, int]
Section = tuple[str, Sequence[Image.Image]]
"""A title and the panels under it."""

RED, GREEN, BLUE = (235, 64, 52), (40, 200, 80), (70, 130, 255)
INK, PAPER = (30, 30, 30), (250, 250, 250)
PANEL, GAP, LINE = 144, 10, 18
COLUMNS = 8
LEGEND = (("proposal", RED), ("truth", GREEN), ("prediction", BLUE))

_SHARE = 0.995  # of preprocessed values that are shown as they are; the others are black or white


def draw_sheet(
    sections: Sequence[Section], legend: Sequence[tuple[str, Colour]] = LEGEND
) -> Image.Image:
    """Lay panels out in titled rows under a legend."""
    width = COLUMNS * (PANEL + GAP) + GAP
    heights = [
        _title_height(title) + math.ceil(len(panels) / COLUMNS) * (PANEL + LINE + GAP)
        for title, panels in sections
    ]
    sheet = Image.new("RGB", (width, 34 + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    x = GAP
    for name, colour in legend:
        draw.rectangle([x, 10, x + 14, 24], outline=colour, width=3)
        draw.text((x + 20, 9), name, fill=INK, font=_font(14))
        x += 32 + int(draw.textlength(name, font=_font(14)))
    y = 34
    for (title, panels), height in zip(sections, heights, strict=True):
        draw.multiline_text((GAP, y + 4), title, fill=INK, font=_font(14), spacing=4)
        top = y + _title_height(title)
        for index, panel in enumerate(panels):
            row, column = divmod(index, COLUMNS)
            sheet.paste(panel, (GAP + column * (PANEL + GAP), top + row * (PANEL + LINE + GAP)))
        y += height
    return sheet


def draw_rows(
    data: CropDataModule, evaluation: Evaluation, rows: Sequence[int]
) -> list[Image.Image]:
    """Draw evaluated crops: proposal red, truth green, prediction blue, distances beneath.

    Args:
        data: Where the samples come from.
        evaluation: What a model made of them.
        rows: Which of its rows to draw.
    """
    chosen = torch.tensor(list(rows))
    shown = evaluation.samples.take(chosen)
    predicted = evaluation.refined.boxes[chosen]
    px = data.geometry.px(shown.proposals)
    before, after = (
        error_px(boxes, shown.gt_boxes, px).norm(dim=1) for boxes in (shown.proposals, predicted)
    )
    return _draw_panels(
        data.crops_of(shown.to(data.source.store.device)),
        data.geometry.crop_boxes(shown.proposals),
        [(shown.proposals, RED), (shown.gt_boxes, GREEN), (predicted, BLUE)],
        [f"{old:.1f} to {new:.2f} px" for old, new in zip(before, after, strict=True)],
    )


def random_rows(evaluation: Evaluation, count: int) -> list[int]:
    """Choose rows to show, the same for every model."""
    total = len(evaluation.samples.items)
    order = torch.randperm(total, generator=keyed_generator("sheet"))
    rows: list[int] = order[:count].tolist()
    return rows


def draw_results(data: CropDataModule, evaluation: Evaluation, count: int = 24) -> Image.Image:
    """Draw the worst crops of an evaluation and as many random ones."""
    samples = evaluation.samples
    px = data.geometry.px(samples.proposals)
    after = error_px(evaluation.refined.boxes, samples.gt_boxes, px).norm(dim=1)
    worst = after.argsort(descending=True)[:count].tolist()
    random = random_rows(evaluation, count)
    title = f"the {len(worst)} worst of {len(after)} draws (distance before to after)"
    sections = [
        (title, draw_rows(data, evaluation, worst)),
        (f"{len(random)} random draws", draw_rows(data, evaluation, random)),
    ]
    return draw_sheet(sections)


def draw_data(data: CropDataModule, title: str) -> Image.Image:
    """Draw training crops as the model sees them, augmented, and validation crops."""
    sections = []
    shown: tuple[tuple[Split, int, str], ...] = (
        ("train", 24, f"{title}\n\ntraining crops"),
        ("val", 16, "validation crops"),
    )
    for split, count, name in shown:
        device = data.source.store.device
        rows = torch.arange(min(count, data.eval_draws, data.draws_per_epoch), device=device)
        batch = data.make_batch(Rows(split, 0, rows, torch.ones_like(rows, dtype=torch.bool)))
        px = data.geometry.px(batch.proposals)
        distances = error_px(batch.proposals, batch.gt_boxes, px).abs()
        panels = _draw_panels(
            batch.crops,
            data.geometry.crop_boxes(batch.proposals),
            [(batch.proposals, RED), (batch.gt_boxes, GREEN)],
            [f"off by {x:.1f}, {y:.1f} px" for x, y in distances.tolist()],
        )
        sections.append((name, panels))
    return draw_sheet(sections, LEGEND[:2])


def draw_changes(data: BoxDataModule, boxes: Boxes, chosen: Sequence[int]) -> Image.Image:
    r"""Draw boxes that were refined, old red and new blue, cut around the old one.

    Args:
        data: A data module that has read rough boxes.
        boxes: The new box of each of its table's.
        chosen: Which to draw, in this order; they must be among those refined.
    """
    assert data.rough is not None
    old = data.rough.table.boxes
    moved = error_px(boxes, old, data.geometry.px(old)).norm(dim=1)
    captions = [f"{moved[at]:.2f} px, line {at + 2}" for at in chosen]
    title = f"the {len(chosen)} largest changes of {len(old)} boxes"
    title = f"{title}, and their lines in changes.csv"
    return draw_moves(data, boxes, chosen, captions, title, ("rough box", "refined box"))


def draw_moves(
    data: BoxDataModule,
    boxes: Boxes,
    chosen: Sequence[int],
    captions: Sequence[str],
    title: str,
    names: tuple[str, str],
) -> Image.Image:
    """Draw boxes that files hold, red, with where they should be, blue, cut around the former.

    Args:
        data: A data module that has read rough boxes.
        boxes: The new box of each of its table's.
        chosen: Which to draw, in this order; they must be among those refined.
        captions: What to write beneath each.
        title: What to write above them all.
        names: What the legend calls the old boxes, and the new ones.
    """
    assert data.rough is not None
    old, new = data.rough.table.boxes[list(chosen)], boxes[list(chosen)]
    row_of = {at: row for row, at in enumerate(data.rough.chosen.tolist())}
    samples = data.samples("predict").take(torch.tensor([row_of[at] for at in chosen]).long())
    panels = _draw_panels(
        data.crops_of(samples.to(data.source.store.device)),
        data.geometry.crop_boxes(samples.proposals),
        [(old, RED), (new, BLUE)],
        captions,
    )
    return draw_sheet([(title, panels)], ((names[0], RED), (names[1], BLUE)))


def draw_strangest(
    table: BoxTable,
    chosen: Mapping[str, Sequence[int]],
    others: Int64[Tensor, " n"],
    white_level: White | None = None,
) -> Image.Image:
    """Draw boxes of a table amid twice their size, numbered under a title for each kind.

    Args:
        table: The boxes.
        chosen: Their indices, by what is strange about them.
        others: The box that each of the table overlaps most; itself where it overlaps none.
        white_level: What is white, or black and white, beyond 8 bits; all of them by default.

    Raises:
        BadInput: A picture can't be decoded.
    """
    geometry = CropGeometry(size=PANEL, context=2.0, square=True)
    paths = [table.root / path for path in table.images]
    files = PictureFiles(paths, table.sizes, white_level=white_level or FULL_SCALE, part=table.part)
    sections = []
    for name, indices in chosen.items():
        boxes = table.boxes[list(indices)]
        crop_boxes = geometry.crop_boxes(boxes)
        crops = cut_crops(files, table.image_index[list(indices)], crop_boxes, geometry.size)
        sizes = box_sizes(boxes).tolist()
        captions = [f"{n}: {w:.0f} x {h:.0f} pixels" for n, (w, h) in enumerate(sizes, 1)]
        layers = [(table.boxes[others[list(indices)]], RED), (boxes, GREEN)]
        sections.append((name, _draw_panels(crops, crop_boxes, layers, captions)))
    return draw_sheet(sections, (("box", GREEN), ("the one it overlaps most", RED)))


@torch.no_grad()
def draw_preprocess(preprocess: Preprocess, crops: Float[Tensor, "n 3 h w"]) -> Image.Image | None:
    """Draw what a preprocessing learnt, and crops before and after it; None where it has none.

    Args:
        preprocess: Fitted.
        crops: Some to show, in [0, 1], on its device.
    """
    learnt = preprocess.pictures()
    if not learnt:
        return None
    single = {name: found[0] for name, found in learnt.items() if len(found) == 1}
    sections = [("what the training crops say of each pixel", _draw_named(single))]
    for name, found in learnt.items():
        if len(found) > 1:
            numbered = {str(at): each for at, each in enumerate(found, start=1)}
            sections.append((name, _draw_named(numbered)))
    after = f"the same after {type(preprocess).__name__}, 0 shown grey"
    for name, found in {"crops": crops, after: _made_visible(preprocess(crops))}.items():
        sections.append((name, [_draw_panel(crop, [], "") for crop in found]))
    return draw_sheet(sections, legend=())


def _made_visible(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Scale pictures alike, so that nearly all of them lies in [0, 1], and 0 is grey."""
    magnitudes = pictures.abs().flatten().sort().values
    limit = magnitudes[round(_SHARE * (len(magnitudes) - 1))].clamp(min=1e-6)
    return 0.5 + pictures / (2 * limit)


def _draw_named(pictures: dict[str, Tensor]) -> list[Image.Image]:
    return [_draw_panel(each, [], name) for name, each in pictures.items()]


def _draw_panels(
    crops: Float[Tensor, "n 3 s s"],
    crop_boxes: Boxes,
    layers: Sequence[tuple[Boxes, Colour]],
    captions: Sequence[str],
) -> list[Image.Image]:
    """Draw crops with the boxes of each layer, which are in the picture's pixels."""
    corner, size = crop_boxes[:, None, :2], crop_boxes[:, None, 2:] - crop_boxes[:, None, :2]
    drawn = [((boxes.view(-1, 2, 2) - corner) / size * PANEL, colour) for boxes, colour in layers]
    return [
        _draw_panel(crop, [(boxes[row].flatten(), colour) for boxes, colour in drawn], caption)
        for row, (crop, caption) in enumerate(zip(crops, captions, strict=True))
    ]


def _draw_panel(
    crop: Float[Tensor, "3 s s"],
    boxes: Sequence[tuple[Float[Tensor, " 4"], Colour]],
    caption: str,
) -> Image.Image:
    """Draw one crop, enlarged, with coloured boxes (given in panel pixels) and a line beneath."""
    rgb = (crop.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    panel = Image.new("RGB", (PANEL, PANEL + LINE), PAPER)
    panel.paste(Image.fromarray(rgb).resize((PANEL, PANEL), Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(panel)
    for box, colour in boxes:
        if bool(box.isfinite().all()):  # not so of a model that diverged
            edges = box.clamp(-PANEL, 2 * PANEL)  # Pillow can't draw to where no pixel could be
            draw.rectangle([round(value) for value in edges.tolist()], outline=colour, width=2)
    draw.rectangle([0, PANEL, PANEL, PANEL + LINE], fill=PAPER)
    draw.text((2, PANEL + 2), caption, fill=INK, font=_font(12))
    return panel


def _title_height(title: str) -> int:
    return 10 + 20 * (title.count("\n") + 1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
