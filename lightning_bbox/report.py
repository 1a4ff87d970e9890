"""What a person sees: sheets of crops with their boxes, and the table at the end of a run."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_bbox.boxes import Boxes
from lightning_bbox.evaluation import Evaluation

RED, GREEN, BLUE = (235, 64, 52), (40, 200, 80), (70, 130, 255)
INK, PAPER = (30, 30, 30), (250, 250, 250)
PANEL, GAP, LINE = 144, 10, 18
LEGEND = (("proposal", RED), ("truth", GREEN), ("prediction", BLUE))


def boxes_in_crops(boxes: Boxes, crop_boxes: Boxes, side: float) -> Boxes:
    """Express boxes in the pixels of crops shown with a given side.

    Examples:
        >>> import torch
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
        >>> import torch
        >>> box = torch.tensor([10.0, 10, 60, 60])
        >>> draw_crop(torch.zeros(3, 8, 8), [(box, RED)], "0.4 px").size
        (144, 162)
    """
    rgb = (crop.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    panel = Image.new("RGB", (PANEL, PANEL + LINE), PAPER)
    panel.paste(Image.fromarray(rgb).resize((PANEL, PANEL), Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(panel)
    for box, colour in boxes:
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
        >>> import torch
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


def draw_evaluation(
    crops: Float[Tensor, "n 3 s s"],
    evaluation: Evaluation,
    crop_boxes: Boxes,
    rows: Sequence[int],
    errors: Float[Tensor, " n"],
    before: Float[Tensor, " n"],
) -> list[Image.Image]:
    """Draw evaluated crops: proposal red, truth green, prediction blue.

    Beneath stands the error before and after.

    Args:
        crops: The crops of `rows`, in their order.
        evaluation: Samples and refined boxes of the whole evaluation.
        crop_boxes: Where all its crops were cut.
        rows: Which rows to draw.
        errors: Distance of each row's prediction from the truth, in px.
        before: The same of its proposal.

    Examples:
        >>> import torch
        >>> from lightning_bbox import SceneDataModule
        >>> from lightning_bbox.metrics import Refined
        >>> data = SceneDataModule(num_scenes=20, eval_draws=4, compile=False)
        >>> samples, zeros = data.samples("val"), torch.zeros(4)
        >>> unrefined = Refined(samples.proposals, zeros, zeros == 0)
        >>> evaluation = Evaluation(samples, unrefined, {}, [])
        >>> crop_boxes = data.geometry.crop_boxes(samples.proposals)
        >>> len(draw_evaluation(data.cut(samples), evaluation, crop_boxes, range(4), zeros, zeros))
        4
    """
    samples, boxes = evaluation.samples, evaluation.refined.boxes
    layers = [
        (boxes_in_crops(layer, crop_boxes, PANEL), colour)
        for layer, colour in ((samples.proposals, RED), (samples.gt_boxes, GREEN), (boxes, BLUE))
    ]
    return [
        draw_crop(
            crop,
            [(layer[row], colour) for layer, colour in layers],
            f"{before[row]:.1f} to {errors[row]:.2f} px",
        )
        for crop, row in zip(crops, rows, strict=True)
    ]


def as_array(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture's pixels.

    Examples:
        >>> as_array(Image.new("RGB", (3, 2))).shape
        (2, 3, 3)
    """
    return np.asarray(image)


def format_table(metrics: dict[str, float], rows: Sequence[tuple[str, str, int, float]]) -> str:
    """Format the end of a run: the model beside predicting the mean, then the parts of the set.

    Args:
        metrics: Metrics of the test, by their names without a prefix.
        rows: Parts of the set: (kind, name, samples, mae_px).

    Examples:
        >>> metrics = {"mae_px": 0.8, "mae_px_predict_mean": 2.5, "iou_after": 0.9}
        >>> print(format_table(metrics | {"iou_before": 0.7}, []))
        test                            model   predict the mean
        error of the centre, px         0.800              2.500
        IoU after (before: 0.700)       0.900                  -
    """
    lines = [("test", "model", "predict the mean")]
    for name, title in (
        ("mae_px", "error of the centre, px"),
        ("mae_edge_px", "error of the edges, px"),
        ("error_fraction", "  as a fraction of the box"),
        ("error_picture", "  in picture pixels"),
        ("iou_after", f"IoU after (before: {metrics.get('iou_before', math.nan):.3f})"),
    ):
        if name in metrics:
            baseline = metrics.get(f"{name}_predict_mean")
            lines.append(
                (title, f"{metrics[name]:.3f}", "-" if baseline is None else f"{baseline:.3f}")
            )
    text = [f"{title:<28}{model:>9}{mean:>19}" for title, model, mean in lines]
    if "mae_px_low" in metrics:
        low, high = metrics["mae_px_low"], metrics["mae_px_high"]
        text.append(f"95 % interval over pictures  {low:.3f} to {high:.3f} px")
    if "cramer_rao_mae_px" in metrics:
        text.append(f"Cramer-Rao bound             {metrics['cramer_rao_mae_px']:.3f} px")
    text += [
        f"  {kind} {name:<20} {count:>6} draws {mae:>9.3f} px" for kind, name, count, mae in rows
    ]
    return "\n".join(text)


def _title_height(title: str) -> int:
    return 10 + 20 * (title.count("\n") + 1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
