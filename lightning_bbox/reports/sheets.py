"""What a person sees: sheets of crops with their boxes, and the table at the end of a run."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.loader import Rows, Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.scenes import SceneDataModule
from lightning_bbox.evaluation.evaluation import Evaluation
from lightning_bbox.evaluation.metrics import Refined, error_px
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.nn.calibration import LEVELS

RED, GREEN, BLUE = (235, 64, 52), (40, 200, 80), (70, 130, 255)
INK, PAPER = (30, 30, 30), (250, 250, 250)
PANEL, GAP, LINE = 144, 10, 18
COLUMNS = 8
LEGEND = (("proposal", RED), ("truth", GREEN), ("prediction", BLUE))


def boxes_in_crops(boxes: Boxes, crop_boxes: Boxes, side: float) -> Boxes:
    """Express boxes in the pixels of crops shown with a given side.

    Examples:
        >>> crop_boxes = torch.tensor([[5.0, 5, 25, 25]])
        >>> boxes_in_crops(torch.tensor([[10.0, 10, 20, 20]]), crop_boxes, side=40)
        tensor([[10., 10., 30., 30.]])
    """
    sizes = crop_boxes[:, 2:] - crop_boxes[:, :2]
    corners = (boxes.view(-1, 2, 2) - crop_boxes[:, None, :2]) / sizes[:, None]
    return corners.reshape(-1, 4) * side


def draw_crop(
    crop: Float[Tensor, "3 s s"],
    boxes: Sequence[tuple[Float[Tensor, " 4"], tuple[int, int, int]]],
    caption: str,
) -> Image.Image:
    """Draw one crop, enlarged, with coloured boxes (given in panel pixels) and a line beneath.

    Examples:
        >>> box = torch.tensor([10.0, 10, 60, 60])
        >>> draw_crop(torch.zeros(3, 8, 8), [(box, RED)], "0.4 px").size
        (144, 162)
    """
    rgb = (crop.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    panel = Image.new("RGB", (PANEL, PANEL + LINE), PAPER)
    panel.paste(Image.fromarray(rgb).resize((PANEL, PANEL), Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(panel)
    for box, colour in boxes:
        if not bool(box.isfinite().all()):  # of a model that diverged
            continue
        draw.rectangle([round(value) for value in box.tolist()], outline=colour, width=2)
    draw.rectangle([0, PANEL, PANEL, PANEL + LINE], fill=PAPER)
    draw.text((2, PANEL + 2), caption, fill=INK, font=_font(12))
    return panel


def draw_sheet(
    sections: Sequence[tuple[str, Sequence[Image.Image]]],
    legend: Sequence[tuple[str, tuple[int, int, int]]],
    columns: int,
) -> Image.Image:
    """Lay panels out in titled rows under a legend.

    Examples:
        >>> panel = draw_crop(torch.zeros(3, 8, 8), [], "")
        >>> draw_sheet([("worst", [panel] * 3)], LEGEND, columns=2).size[0]
        318
    """
    width = columns * (PANEL + GAP) + GAP
    heights = [
        _title_height(title) + math.ceil(len(panels) / columns) * (PANEL + LINE + GAP)
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
        for index, panel in enumerate(panels):
            row, column = divmod(index, columns)
            sheet.paste(
                panel,
                (
                    GAP + column * (PANEL + GAP),
                    y + _title_height(title) + row * (PANEL + LINE + GAP),
                ),
            )
        y += height
    return sheet


def distances_px(
    data: CropDataModule, evaluation: Evaluation
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return how far the centres of proposals and of refined boxes lie from the truth, in px.

    Examples:
        >>> data, evaluation = _unrefined_scenes(4)
        >>> before, after = distances_px(data, evaluation)
        >>> before.equal(after)
        True
    """
    samples = evaluation.samples
    px = data.geometry.px(samples.proposals)
    before, after = (
        error_px(boxes, samples.gt_boxes, px).norm(dim=1)
        for boxes in (samples.proposals, evaluation.refined.boxes)
    )
    return before, after


def draw_rows(
    data: CropDataModule, evaluation: Evaluation, rows: Sequence[int]
) -> list[Image.Image]:
    """Draw evaluated crops: proposal red, truth green, prediction blue, distances beneath.

    Args:
        data: Where the samples come from.
        evaluation: What a model made of them.
        rows: Which of its rows to draw.

    Examples:
        >>> len(draw_rows(*_unrefined_scenes(4), range(3)))
        3
    """
    samples = evaluation.samples
    device = data.source.store.device
    crops = data.crops_of(samples.take(torch.tensor(list(rows))).to(device)).cpu()
    crop_boxes = data.geometry.crop_boxes(samples.proposals)
    before, after = distances_px(data, evaluation)
    layers = [
        (boxes_in_crops(boxes, crop_boxes, PANEL), colour)
        for boxes, colour in (
            (samples.proposals, RED),
            (samples.gt_boxes, GREEN),
            (evaluation.refined.boxes, BLUE),
        )
    ]
    return [
        draw_crop(
            crop,
            [(boxes[row], colour) for boxes, colour in layers],
            f"{before[row]:.1f} to {after[row]:.2f} px",
        )
        for crop, row in zip(crops, rows, strict=True)
    ]


def random_rows(evaluation: Evaluation, count: int) -> list[int]:
    """Choose rows to show, the same for every model.

    Examples:
        >>> _, evaluation = _unrefined_scenes(4)
        >>> sorted(random_rows(evaluation, 10))
        [0, 1, 2, 3]
    """
    total = len(evaluation.samples.items)
    order = torch.randperm(total, generator=keyed_generator("sheet"))
    rows: list[int] = order[:count].tolist()
    return rows


def draw_results(data: CropDataModule, evaluation: Evaluation, count: int = 24) -> Image.Image:
    """Draw the worst crops of an evaluation and as many random ones.

    Examples:
        >>> draw_results(*_unrefined_scenes(30), count=8).size
        (1242, 438)
    """
    after = distances_px(data, evaluation)[1]
    worst = after.argsort(descending=True)[:count].tolist()
    random = random_rows(evaluation, count)
    title = f"the {len(worst)} worst of {len(after)} draws (distance before to after)"
    sections = [
        (title, draw_rows(data, evaluation, worst)),
        (f"{len(random)} random draws", draw_rows(data, evaluation, random)),
    ]
    return draw_sheet(sections, LEGEND, COLUMNS)


def draw_data(data: CropDataModule, title: str) -> Image.Image:
    """Draw training crops as the model sees them, augmented, and validation crops.

    Examples:
        >>> draw_data(_unrefined_scenes(8)[0], "scenes").size
        (1242, 478)
    """
    sections = []
    shown: tuple[tuple[Split, int, str], ...] = (
        ("train", 24, f"{title}\n\ntraining crops"),
        ("val", 16, "validation crops"),
    )
    for split, count, name in shown:
        device = data.source.store.device
        rows = torch.arange(min(count, data.eval_draws, data.draws_per_epoch), device=device)
        batch = data.make_batch(Rows(split, 0, rows, torch.ones_like(rows, dtype=torch.bool)))
        crop_boxes = data.geometry.crop_boxes(batch.proposals)
        layers = [
            (boxes_in_crops(boxes, crop_boxes, PANEL), colour)
            for boxes, colour in ((batch.proposals, RED), (batch.gt_boxes, GREEN))
        ]
        distance = error_px(
            batch.proposals, batch.gt_boxes, data.geometry.px(batch.proposals)
        ).abs()
        panels = [
            draw_crop(
                batch.crops[row],
                [(boxes[row], colour) for boxes, colour in layers],
                f"off by {distance[row, 0]:.1f}, {distance[row, 1]:.1f} px",
            )
            for row in rows.tolist()
        ]
        sections.append((name, panels))
    return draw_sheet(sections, LEGEND[:2], COLUMNS)


def draw_changes(data: BoxDataModule, boxes: Boxes, chosen: Sequence[int]) -> Image.Image:
    r"""Draw boxes that were refined, old red and new blue, cut around the old one.

    Args:
        data: A data module that has read rough boxes.
        boxes: The new box of each of its table's.
        chosen: Which to draw, in this order; they must be among those refined.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("L", (60, 50)).save(root / "a.png")
        >>> _ = (root / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,5,6,35,36")
        >>> data = BoxDataModule(str(root), compile=False)
        >>> data.setup("predict")
        >>> draw_changes(data, data.rough.table.boxes + 1, [0]).size
        (1242, 236)
    """
    assert data.rough is not None
    old = data.rough.table.boxes
    row_of = {at: row for row, at in enumerate(data.rough.chosen.tolist())}
    samples = data.samples("predict").take(torch.tensor([row_of[at] for at in chosen]).long())
    crops = data.crops_of(samples.to(data.source.store.device)).cpu()
    crop_boxes = data.geometry.crop_boxes(samples.proposals)
    moved = error_px(boxes, old, data.geometry.px(old)).norm(dim=1)
    layers = [
        (boxes_in_crops(layer[list(chosen)], crop_boxes, PANEL), colour)
        for layer, colour in ((old, RED), (boxes, BLUE))
    ]
    panels = [
        draw_crop(
            crop,
            [(layer[row], colour) for layer, colour in layers],
            f"{moved[at]:.2f} px, line {at + 2}",
        )
        for row, (crop, at) in enumerate(zip(crops, chosen, strict=True))
    ]
    title = f"the {len(chosen)} largest changes of {len(old)} boxes, and their lines in changes.csv"
    return draw_sheet([(title, panels)], (("rough box", RED), ("refined box", BLUE)), COLUMNS)


def as_array(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture's pixels.

    Examples:
        >>> as_array(Image.new("RGB", (3, 2))).shape
        (2, 3, 3)
    """
    return np.asarray(image)


def format_table(
    metrics: dict[str, float], rows: Sequence[tuple[str, str, int, float]], title: str = "test"
) -> str:
    """Format the end of a run: the model beside predicting the mean, then the parts of the set.

    Args:
        metrics: Metrics of the test, by their names without a prefix.
        rows: Parts of the set: (kind, name, samples, mae_px).
        title: What was measured on.

    Examples:
        >>> metrics = {"mae_px": 0.8, "mae_px_predict_mean": 2.5, "iou_after": 0.9}
        >>> print(format_table(metrics | {"iou_before": 0.7}, []))
        test                            model   predict the mean
        error of the centre, px         0.800              2.500
        IoU after (before: 0.700)       0.900                  -
    """
    lines = [(title, "model", "predict the mean")]
    for name, words in (
        ("mae_px", "error of the centre, px"),
        ("mae_edge_px", "error of the edges, px"),
        ("error_fraction", "  as a fraction of the box"),
        ("error_picture", "  in picture pixels"),
        ("iou_after", f"IoU after (before: {metrics.get('iou_before', math.nan):.3f})"),
    ):
        if name in metrics:
            baseline = metrics.get(f"{name}_predict_mean")
            lines.append(
                (words, f"{metrics[name]:.3f}", "-" if baseline is None else f"{baseline:.3f}")
            )
    text = [f"{words:<28}{model:>9}{mean:>19}" for words, model, mean in lines]
    if "mae_px_low" in metrics:
        low, high = metrics["mae_px_low"], metrics["mae_px_high"]
        text.append(f"95 % interval over pictures  {low:.3f} to {high:.3f} px")
    if "cramer_rao_mae_px" in metrics:
        text.append(f"Cramer-Rao bound             {metrics['cramer_rao_mae_px']:.3f} px")
    if "coverage_90" in metrics:
        text.append(_calibration_line(metrics))
    text += [
        f"  {kind} {name:<20} {count:>6} draws {mae:>9.3f} px" for kind, name, count, mae in rows
    ]
    return "\n".join(text)


def _calibration_line(metrics: dict[str, float]) -> str:
    held = "/".join(f"{100 * metrics[f'coverage_{100 * level:.0f}']:.0f}" for level in LEVELS)
    density = f", NLL {metrics['nll']:.3f}" if "nll" in metrics else ""
    return f"50/90/95 % intervals hold    {held} %, std {metrics['std_px']:.3f} px{density}"


def _title_height(title: str) -> int:
    return 10 + 20 * (title.count("\n") + 1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _unrefined_scenes(draws: int) -> tuple[CropDataModule, Evaluation]:
    """Return scenes and what a model that does nothing makes of them, for the examples."""
    data = SceneDataModule(num_scenes=20, eval_draws=draws, compile=False)
    samples = data.samples("val")
    zeros = torch.zeros(draws)
    stds, nll = torch.zeros(2, draws, 2)
    refined = Refined(samples.proposals, zeros, stds, nll, zeros == 0)
    return data, Evaluation(samples, refined, {}, [])
