"""Slow, obvious oracles, mostly in NumPy: one box, one pixel, one sample at a time.

Written from the formulas, not from the package; boxes are `xyxy` in continuous pixel edges.
"""

import math

import numpy as np
import torch.nn.functional as F


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


def halved(picture):
    """Return the mean of each 2 x 2 pixels, rounded half to even; odd edges count twice."""
    rows, columns = picture.shape[0] % 2, picture.shape[1] % 2
    padded = np.pad(picture.astype(float), ((0, rows), (0, columns), (0, 0)), mode="edge")
    return np.rint(
        (padded[::2] + padded[1::2])[:, ::2] / 4 + (padded[::2] + padded[1::2])[:, 1::2] / 4
    )


def cut(picture, crop_box, size):
    """Cut a crop (3, size, size) by the rule that stands in `pictures/pyramid`, pixel by pixel."""
    x1, y1, x2, y2 = (float(edge) for edge in crop_box)
    shrinks, level = (abs(x2 - x1) / size, abs(y2 - y1) / size), 0
    while (shrinks[0] * shrinks[1] + 2) / 4 ** (level + 1) >= 2.69 and max(picture.shape[:2]) > 1:
        picture, level = halved(picture), level + 1
    reaches = [
        math.sqrt(min(max(((r**2 + 2) / 4**level - (2.27 if level else 3)) / 8, 0), 1))
        for r in shrinks
    ]
    right, low = (
        0 if level == 0 and r < 1.15 else reach for r, reach in zip(shrinks, reaches, strict=True)
    )
    crop = np.zeros((3, size, size))
    for channel in range(3):
        for row in range(size):
            for column in range(size):
                x = (x1 + (column + 0.5) / size * (x2 - x1)) / 2**level
                y = (y1 + (row + 0.5) / size * (y2 - y1)) / 2**level
                samples = [
                    bilinear(picture, x + across * right, y + down * low, channel)
                    for down in (-1, 0, 1)
                    for across in (-1, 0, 1)
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
        "harmed": mean(each(iou, boxes, gt_boxes) < each(iou, proposals, gt_boxes) - 1e-3),
    }
    if num_targets == 4:
        metrics["mae_edge_px"] = mean(edges)
    for axis, name in enumerate(("dx", "dy", "dw", "dh")[:num_targets]):
        if max(truth[axis]) > min(truth[axis]):
            slope, r2 = slope_and_r2(predicted[axis], truth[axis])
            metrics |= {f"slope_{name}": slope, f"r2_{name}": r2}
    return metrics


def bias_reduced(values, clusters):
    """A mean with Bell and McCaffrey's variance and its degrees of freedom, by whole matrices.

    These are twice the squared mean over the variance of the variance, simulated for clusters whose
    means vary alike.
    """
    names = np.unique(clusters)
    count = len(values)
    members = [clusters == name for name in names]

    def variance(numbers):
        residuals = numbers - numbers.mean()
        total = 0.0
        for member in members:
            size = member.sum()
            hat = np.eye(size) - np.ones((size, size)) / count
            roots, vectors = np.linalg.eigh(hat)
            adjusted = vectors @ np.diag(roots**-0.5) @ vectors.T @ residuals[member]
            total += adjusted.sum() ** 2 / count**2
        return total

    rng = np.random.default_rng(0)
    places = np.searchsorted(names, clusters)
    drawn = [variance(rng.normal(size=len(names))[places]) for _ in range(4000)]
    return values.mean(), variance(values), 2 * np.mean(drawn) ** 2 / np.var(drawn)


def dense_gcv(x: np.ndarray, y: np.ndarray, lam: float) -> float:
    """Return generalised cross-validation from the matrix that makes residuals of targets."""
    count = len(x)
    centred = x - x.mean(axis=0)
    residual_maker = lam * np.linalg.inv(centred @ centred.T + lam * np.eye(count))
    residual_maker -= np.ones((count, count)) / count  # the mean is fitted without a penalty
    residual = residual_maker @ y
    return float(count * (residual**2).sum() / np.trace(residual_maker) ** 2)


def torchvision_alexnet(state, crops):
    """Every layer of torchvision's AlexNet from its state dict, in the order of the data."""
    conv, relu, pool, linear = F.conv2d, F.relu, F.max_pool2d, F.linear
    weights = [state[f"features.{index}.weight"] for index in (0, 3, 6, 8, 10)]
    biases = [state[f"features.{index}.bias"] for index in (0, 3, 6, 8, 10)]
    out = {}
    out["conv1"] = conv(crops, weights[0], biases[0], stride=4, padding=2)
    out["pool1"] = pool(relu(out["conv1"]), kernel_size=3, stride=2)
    out["conv2"] = conv(out["pool1"], weights[1], biases[1], stride=1, padding=2)
    out["pool2"] = pool(relu(out["conv2"]), kernel_size=3, stride=2)
    out["conv3"] = conv(out["pool2"], weights[2], biases[2], stride=1, padding=1)
    out["conv4"] = conv(relu(out["conv3"]), weights[3], biases[3], stride=1, padding=1)
    out["conv5"] = conv(relu(out["conv4"]), weights[4], biases[4], stride=1, padding=1)
    out["pool5"] = pool(relu(out["conv5"]), kernel_size=3, stride=2)
    six = F.adaptive_avg_pool2d(out["pool5"], (6, 6)).reshape(len(crops), 256 * 6 * 6)
    out["fc6"] = linear(six, state["classifier.1.weight"], state["classifier.1.bias"])
    out["fc7"] = linear(relu(out["fc6"]), state["classifier.4.weight"], state["classifier.4.bias"])
    out["fc8"] = linear(relu(out["fc7"]), state["classifier.6.weight"], state["classifier.6.bias"])
    return out


def convolve(picture, weight, bias, stride=1, padding=0, groups=1):
    """Correlate a map (channels, rows, columns), each group of outputs with its own inputs."""
    outputs, inputs, side, _ = weight.shape
    padded = np.pad(picture, ((0, 0), (padding, padding), (padding, padding)))
    places = range(0, padded.shape[1] - side + 1, stride)
    result = np.zeros((outputs, len(places), len(places)))
    for group in range(groups):
        mine = slice(group * outputs // groups, (group + 1) * outputs // groups)
        seen = padded[group * inputs : (group + 1) * inputs]
        for row, top in enumerate(places):
            for column, left in enumerate(places):
                window = seen[:, top : top + side, left : left + side]
                result[mine, row, column] = (weight[mine] * window).sum(axis=(1, 2, 3))
    return result + bias[:, None, None]


def pool_to_the_end(picture, side=3, stride=2):
    """Take the maximum of windows until one reaches the map's end, as Caffe does."""
    places, top = [0], 0
    while top + side < picture.shape[1]:
        top += stride
        places.append(top)
    rows = [
        [picture[:, top : top + side, left : left + side].max(axis=(1, 2)) for left in places]
        for top in places
    ]
    return np.array(rows).transpose(2, 0, 1)


def normalise_responses(picture, size=5, alpha=1e-4, beta=0.75):
    """Krizhevsky 2012, section 3.3, with Caffe's alpha over the size and k of 1."""
    result = np.zeros_like(picture)
    for channel in range(len(picture)):
        near = picture[max(0, channel - size // 2) : channel + size // 2 + 1]
        scale = 1 + alpha / size * (near**2).sum(axis=0)
        result[channel] = picture[channel] / scale**beta
    return result


def caffe_alexnet(state, picture):
    """Every layer of Caffe's AlexNet up to pool5, from arrays, for one picture."""

    def conv(index, source, **arguments):
        return convolve(
            source, state[f"conv{index}.weight"], state[f"conv{index}.bias"], **arguments
        )

    out = {"conv1": conv(1, picture, stride=4)}
    out["relu1"] = np.maximum(out["conv1"], 0)
    out["pool1"] = pool_to_the_end(out["relu1"])
    out["norm1"] = normalise_responses(out["pool1"])
    out["conv2"] = conv(2, out["norm1"], padding=2, groups=2)
    out["relu2"] = np.maximum(out["conv2"], 0)
    out["pool2"] = pool_to_the_end(out["relu2"])
    out["norm2"] = normalise_responses(out["pool2"])
    out["conv3"] = conv(3, out["norm2"], padding=1)
    out["relu3"] = np.maximum(out["conv3"], 0)
    out["conv4"] = conv(4, out["relu3"], padding=1, groups=2)
    out["relu4"] = np.maximum(out["conv4"], 0)
    out["conv5"] = conv(5, out["relu4"], padding=1, groups=2)
    out["relu5"] = np.maximum(out["conv5"], 0)
    out["pool5"] = pool_to_the_end(out["relu5"])
    return out
