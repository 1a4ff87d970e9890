"""Label Studio's protocol for models: rectangles in percent come in, moved ones go back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.refinement.serving.requests import is_number

_TASK = "the task"

Region = dict[str, Any]
"""What Label Studio says of a region: its id, names, type, and value."""


def image_key(label_config: object, data: Mapping[str, object]) -> str:
    """Return the entry of a task's data that is its picture.

    Args:
        label_config: The project's configuration, such as `<Image name="i" value="$image"/>`.
        data: The task's data.

    Raises:
        BadInput: There is none.

    Examples:
        >>> image_key('<View><Image name="i" value="$photo"/></View>', {"photo": "a.png"})
        'photo'
    """
    text = label_config if isinstance(label_config, str) else ""
    tag = text.partition("<Image")[2].partition(">")[0]
    named = tag.partition('value="$')[2].partition('"')[0]
    for key in (named, "image", *data):
        if key and isinstance(data.get(key), str):
            return key
    raise BadInput.at(_TASK, "has no picture in its data", "add one, such as image")


def regions_of(task: Mapping[str, Any], context: object) -> list[Region]:
    """Return the regions that are to be refined: those drawn just now, or the task's newest.

    Args:
        task: The task.
        context: What is drawn at the moment, where a person is at work; its `result` holds regions.

    Raises:
        BadInput: They aren't lists of regions.
    """
    found = context.get("result") if isinstance(context, dict) else None
    if not found:
        for kind in ("annotations", "drafts", "predictions"):
            each = task.get(kind)
            if isinstance(each, list) and each and isinstance(each[-1], dict):
                found = each[-1].get("result")
                if found:
                    break
    found = [found] if isinstance(found, dict) else found or []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadInput.at(_TASK, "its regions are no list", "send it as Label Studio does")
    return list(found)


def rectangles(
    regions: Sequence[Region], width: int, height: int
) -> tuple[list[int], Float[Tensor, "n 4"], list[str]]:
    """Return which regions are upright rectangles, these in pixels, and their labels.

    Args:
        regions: The regions; what is turned, on a turned picture, or no rectangle is left out.
        width: Width of the picture in pixels.
        height: Its height.
    """
    rows, boxes, labels = list[int](), list[list[float]](), list[str]()
    for at, region in enumerate(regions):
        value = region.get("value")
        if not isinstance(value, dict) or region.get("image_rotation") or value.get("rotation"):
            continue
        sides = [value.get(name) for name in ("x", "y", "width", "height")]
        numbers = [float(each) for each in sides if is_number(each)]
        if len(numbers) < 4 or "points" in value or "radiusX" in value:
            continue
        x, y, w, h = numbers
        scale = [width / 100, height / 100] * 2
        edges = [part * each for part, each in zip((x, y, x + w, y + h), scale, strict=True)]
        rows.append(at)
        boxes.append(edges)
        labels.append(_label(value))
    return rows, torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), labels


def _label(value: Mapping[str, Any]) -> str:
    for name in ("rectanglelabels", "labels"):
        found = value.get(name)
        if isinstance(found, list) and found and isinstance(found[0], str):
            return found[0]
    return ""


def moved(region: Region, box: Sequence[float], width: int, height: int) -> Region:
    """Return a region with another rectangle; all else is as it was.

    Args:
        region: The region.
        box: Its new edges, `xyxy` in pixels.
        width: Width of the picture in pixels.
        height: Its height.

    Examples:
        >>> moved({"id": "a", "value": {"rectanglelabels": ["cell"]}}, [10, 10, 30, 20], 100, 50)
        {'id': 'a', 'value': {'rectanglelabels': ['cell'], 'x': 10.0, 'y': 20.0, 'width': 20.0,
        'height': 20.0}}
    """
    left, top, right, bottom = box
    place = {"x": 100 * left / width, "y": 100 * top / height}
    place |= {"width": 100 * (right - left) / width, "height": 100 * (bottom - top) / height}
    return {**region, "value": {**region["value"], **place}}
