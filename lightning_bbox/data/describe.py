"""What there is to train and to test on, in a line a split."""

from lightning_bbox.data.loader import Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.geometry.codecs import encode_deltas


def describe(data: CropDataModule) -> list[str]:
    """Say what there is: pictures, boxes, skipped, spread of the targets.

    Args:
        data: Pictures with boxes, of all three splits.

    Examples:
        >>> from lightning_bbox import SceneDataModule
        >>> print(describe(SceneDataModule(num_scenes=20, compile=False))[0])
        crops of 45 x 45 pixels, each the mean of 1 x 1 samples
    """
    size, splits = data.geometry.size, data.source.splits
    k = data.geometry.supersample
    lines = [f"crops of {size} x {size} pixels, each the mean of {k} x {k} samples"]
    names: tuple[Split, ...] = ("train", "val", "test")
    for name in names:
        items, samples = splits[name], data.samples(name)
        anchors = data.geometry.anchors(samples.proposals)
        deltas = encode_deltas(samples.gt_boxes, anchors)[:, : data.num_targets]
        units = deltas.new_tensor(data.spec().units)
        spread = [f"{value:.2f}" for value in (deltas.std(dim=0) / units).tolist()]
        sizes = f", {', '.join(spread[2:])} in log size" if spread[2:] else ""
        line = (
            f"{name}: {len(set(items.image_index.tolist()))} pictures, {len(items)} boxes, "
            f"{len(items.skipped)} skipped, target std {', '.join(spread[:2])} px{sizes}"
        )
        failed = data.failed_draws.get(name, 0)
        lines.append(
            line + (f", {failed} of {len(deltas)} draws left unjittered" if failed else "")
        )
    return lines
