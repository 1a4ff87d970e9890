"""Slow, obvious oracles in NumPy: one box, one pixel, one sample at a time.

Written from the formulas, not from the package; boxes are `xyxy` in continuous pixel edges.
"""

import math

import numpy as np


def each(function, *columns):
    """Apply an oracle row by row, in fp64."""
    columns = [np.asarray(column, dtype=np.float64) for column in columns]
    return np.array([function(*row) for row in zip(*columns, strict=True)])


def to_xywh(box):
    x1, y1, x2, y2 = box
    return x1, y1, x2 - x1, y2 - y1


def from_xywh(box):
    x, y, width, height = box
    return x, y, x + width, y + height


def to_cxcywh(box):
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def from_cxcywh(box):
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def area(box):
    x1, y1, x2, y2 = box
    return max(x2 - x1, 0) * max(y2 - y1, 0)


def intersection(box, other):
    return area(
        (
            max(box[0], other[0]),
            max(box[1], other[1]),
            min(box[2], other[2]),
            min(box[3], other[3]),
        )
    )


def union(box, other):
    return area(box) + area(other) - intersection(box, other)


def enclosing(box, other):
    return (
        min(box[0], other[0]),
        min(box[1], other[1]),
        max(box[2], other[2]),
        max(box[3], other[3]),
    )


def iou(box, other):
    return intersection(box, other) / union(box, other) if union(box, other) > 0 else 0.0


def giou(box, other):
    hull = area(enclosing(box, other))
    return iou(box, other) - (hull - union(box, other)) / hull


def diou(box, other):
    x, y, _, _ = to_cxcywh(box)
    other_x, other_y, _, _ = to_cxcywh(other)
    _, _, width, height = to_xywh(enclosing(box, other))
    return iou(box, other) - ((x - other_x) ** 2 + (y - other_y) ** 2) / (width**2 + height**2)


def aspect_term(box, other):
    _, _, width, height = to_xywh(box)
    _, _, other_width, other_height = to_xywh(other)
    return 4 / math.pi**2 * (math.atan(other_width / other_height) - math.atan(width / height)) ** 2


def aspect_weight(box, other):
    v = aspect_term(box, other)
    return v / (1 - iou(box, other) + v) if v > 0 else 0.0


def ciou(box, other):
    return diou(box, other) - aspect_weight(box, other) * aspect_term(box, other)


def encode(box, anchor):
    """Girshick 2014, appendix C, equations 6 to 9."""
    x, y, width, height = to_cxcywh(box)
    anchor_x, anchor_y, anchor_width, anchor_height = to_cxcywh(anchor)
    return (
        (x - anchor_x) / anchor_width,
        (y - anchor_y) / anchor_height,
        math.log(width / anchor_width),
        math.log(height / anchor_height),
    )


def decode(deltas, anchor):
    """Girshick 2014, appendix C, equations 1 to 4; two deltas leave the size."""
    anchor_x, anchor_y, width, height = to_cxcywh(anchor)
    x, y = anchor_x + deltas[0] * width, anchor_y + deltas[1] * height
    if len(deltas) == 4:
        limit = math.log(1000 / 16)
        width *= math.exp(min(max(deltas[2], -limit), limit))
        height *= math.exp(min(max(deltas[3], -limit), limit))
    return from_cxcywh((x, y, width, height))


def pixel(picture, row, column, channel):
    """Read a pixel from 0 to 1; outside the picture the border repeats."""
    height, width, _ = picture.shape
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    return float(picture[row, column, channel]) / 255


def bilinear(picture, x, y, channel):
    """Sample at a point of the picture; the pixel in row r, column c has its centre half a pixel
    further.
    """
    column, row = math.floor(x - 0.5), math.floor(y - 0.5)
    right, low = x - 0.5 - column, y - 0.5 - row
    top = (1 - right) * pixel(picture, row, column, channel) + right * pixel(
        picture, row, column + 1, channel
    )
    bottom = (1 - right) * pixel(picture, row + 1, column, channel) + right * pixel(
        picture, row + 1, column + 1, channel
    )
    return (1 - low) * top + low * bottom


def cut(picture, crop_box, size, supersample=1):
    """Cut a crop (3, size, size): each pixel averages k x k samples spread evenly over it."""
    x1, y1, x2, y2 = (float(edge) for edge in crop_box)
    crop = np.zeros((3, size, size))
    within = [(i + 0.5) / supersample for i in range(supersample)]
    for channel in range(3):
        for row in range(size):
            for column in range(size):
                samples = [
                    bilinear(
                        picture,
                        x1 + (column + right) / size * (x2 - x1),
                        y1 + (row + low) / size * (y2 - y1),
                        channel,
                    )
                    for low in within
                    for right in within
                ]
                crop[channel, row, column] = sum(samples) / len(samples)
    return crop


def quantile(values, level):
    """Interpolate linearly between the two order statistics around (n - 1) * level."""
    values = sorted(values)
    place = (len(values) - 1) * level
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def mean(values):
    return sum(values) / len(values)


def slope_and_r2(predicted, truth):
    truth_mean, predicted_mean = mean(truth), mean(predicted)
    variance = sum((t - truth_mean) ** 2 for t in truth)
    pairs = list(zip(truth, predicted, strict=True))
    slope = sum((t - truth_mean) * (p - predicted_mean) for t, p in pairs) / variance
    return slope, 1 - sum((p - t) ** 2 for t, p in pairs) / variance


def box_metrics(boxes, proposals, gt_boxes, px, num_targets):
    """Measure refined boxes; `px` is the size of a px in picture pixels, (x, y)."""
    errors, fractions, pictures, edges, worst = [], [], [], [], []
    predicted, truth = ([], [], [], []), ([], [], [], [])
    for box, proposal, gt, unit in zip(boxes, proposals, gt_boxes, px, strict=True):
        centre, start, goal = to_cxcywh(box), to_cxcywh(proposal), to_cxcywh(gt)
        for axis in range(2):
            off = centre[axis] - goal[axis]
            errors.append(abs(off) / unit[axis])
            fractions.append(abs(off) / goal[2 + axis])
            pictures.append(abs(off))
            predicted[axis].append((centre[axis] - start[axis]) / unit[axis])
            truth[axis].append((goal[axis] - start[axis]) / unit[axis])
            predicted[2 + axis].append(math.log(centre[2 + axis] / start[2 + axis]))
            truth[2 + axis].append(math.log(goal[2 + axis] / start[2 + axis]))
        edges += [abs(box[edge] - gt[edge]) / unit[edge % 2] for edge in range(4)]
        worst.append(max(errors[-2:]))
    metrics = {
        "mae_px": mean(errors),
        "rmse_px": math.sqrt(mean([error**2 for error in errors])),
        "p95_px": quantile(worst, 0.95),
        "within_1px": mean([float(error <= 1) for error in worst]),
        "error_fraction": mean(fractions),
        "error_picture": mean(pictures),
        "iou_before": mean(each(iou, proposals, gt_boxes)),
        "iou_after": mean(each(iou, boxes, gt_boxes)),
    }
    if num_targets == 4:
        metrics["mae_edge_px"] = mean(edges)
    for axis, name in enumerate(("dx", "dy", "dw", "dh")[:num_targets]):
        if max(truth[axis]) > min(truth[axis]):
            slope, r2 = slope_and_r2(predicted[axis], truth[axis])
            metrics |= {f"slope_{name}": slope, f"r2_{name}": r2}
    return metrics


def cluster_bootstrap(values, clusters, resamples, level, rng):
    """Percentile interval of the mean when whole clusters are drawn with replacement."""
    members = [values[clusters == name] for name in np.unique(clusters)]
    means = []
    for _ in range(resamples):
        drawn = rng.integers(len(members), size=len(members))
        means.append(np.concatenate([members[index] for index in drawn]).mean())
    return quantile(means, (1 - level) / 2), quantile(means, (1 + level) / 2)


def dense_gcv(x: np.ndarray, y: np.ndarray, lam: float) -> float:
    """Return generalised cross-validation from the matrix that makes residuals of targets."""
    count = len(x)
    centred = x - x.mean(axis=0)
    residual_maker = lam * np.linalg.inv(centred @ centred.T + lam * np.eye(count))
    residual_maker -= np.ones((count, count)) / count  # the mean is fitted without a penalty
    residual = residual_maker @ y
    return float(count * (residual**2).sum() / np.trace(residual_maker) ** 2)
