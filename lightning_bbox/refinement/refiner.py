"""Refine boxes on pictures at hand, from a checkpoint's path alone."""

import warnings
from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lightning_bbox.annotations.validity import box_faults
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import expanded
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import White, as_white
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.geometry.trained_range import of_another_kind
from lightning_bbox.geometry.weighing import learn_law, move_under, said_of
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import CHECKPOINT_KEY, write_shared
from lightning_bbox.pictures.cut import cut_crops, kernel_for
from lightning_bbox.pictures.decode import whole
from lightning_bbox.pictures.store import ImageStore
from lightning_bbox.refinement.asked import Asked, Picture, as_boxes, as_rgb
from lightning_bbox.refinement.exported import ExportedGraph, GraphOutput, is_exported
from lightning_bbox.refinement.outcomes import Reason, clip_or_restore, refuse_max_shift, words_of
from lightning_bbox.refinement.sharing.hub import folder_of

BoxArray = TypeVar("BoxArray", np.ndarray, Tensor)


class Refinement(NamedTuple):
    """What a model makes of rough boxes.

    Attributes:
        boxes: The boxes, `xyxy` in picture pixels, inside the picture.
        stds: How far off the model deems them, x and y in px (and log sizes), by a factor that
            fits its errors in validation, and by the law where there is one; NaN where its head
            can't tell, and for boxes beyond the trained range.
        unmoved: Why a box can't be refined, by its index; others may stay as that is best.
        gains: Rise of the expected IoU with the truth, NaN where there is no law or no box.
        beyond: Which boxes lie farther off than those of the training, as far as the model tells:
            they may end anywhere between. Of boxes that don't, some 1 % are counted as such.
    """

    boxes: Boxes
    stds: Float[Tensor, "n t"]
    unmoved: dict[int, str]
    gains: Float[Tensor, " n"]
    beyond: Bool[Tensor, " n"]


class Refiner:
    """Move rough boxes onto their objects.

    All that is needed (the network, what its outputs mean, how crops are cut) lies in the
    checkpoint.

    Args:
        checkpoint: A checkpoint that a run wrote, the run's folder (then its best one), a model
            that `lightning-bbox export` wrote (`.onnx` or `.pt2`), the folder of a shared model
            (see `from_pretrained`), or a trained model at hand, which is moved to the device and
            into evaluation mode.
        device: Where to run.
        batch_size: How many crops the network sees at once.
        max_shift: Largest shift of an edge to believe, in px; boxes that would move farther stay.
        trust: Modules or packages of your own that may be imported for the checkpoint.
        law: How the boxes are off: one learned from a set of them (see `fit_law`), the model's
            `own`, under which those that are right mostly stay, or `trained`, which takes them all
            to be off as those of the training were. A checkpoint that has no own one takes this.
        white_level: What is white, or black and white, beyond 8 bits; that of the training by
            default.
        isolated: Whether the boxes of a picture come out, to the bit, as if it were alone, whatever
            is refined beside it: the network then always sees `batch_size` crops, filled up where
            there are fewer, as its roundings depend on how many there are.

    Attributes:
        law: The law in use; None takes boxes to be off as those of the training were.

    Raises:
        BadInput: The checkpoint isn't one of ours, or needs code that isn't trusted.

    Examples:
        >>> from lightning_bbox import BoxRegressor, OffsetSpec
        >>> model = BoxRegressor()
        >>> model.build(OffsetSpec(CropGeometry(), 2, max_shift=5.0, max_log_size=0.0), seed=0)
        >>> picture, box = np.zeros((60, 80, 3), np.uint8), np.array([[20.0, 10, 50, 40]])
        >>> Refiner(model).refine(picture, box).shape
        (1, 4)
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str] | OffsetModel,
        device: str | torch.device = "cpu",
        batch_size: int = 512,
        max_shift: float | None = None,
        trust: Sequence[str] = (),
        white_level: White | None = None,
        law: DisplacementLaw | Literal["own", "trained"] = "own",
        isolated: bool = False,
    ) -> None:
        refuse_max_shift(max_shift)
        if law not in ("own", "trained") and not isinstance(law, DisplacementLaw):
            msg = f"law is {law!r}; give own, trained, or a DisplacementLaw, such as one loaded"
            raise BadInput(msg)
        own: DisplacementLaw | None = None
        self._graph: ExportedGraph | None = None
        if not isinstance(checkpoint, OffsetModel) and is_exported(Path(checkpoint)):
            self._graph = ExportedGraph(Path(checkpoint))
            _refuse_settled(self._graph, device, max_shift, law)
            self.spec = self._graph.facts.spec
        else:
            if not isinstance(checkpoint, OffsetModel):
                checkpoint = OffsetModel.load_from_checkpoint(checkpoint, trust=trust)
            if checkpoint.spec is None:
                msg = "the model isn't trained; train it, or give the path of a checkpoint"
                raise BadInput(msg)
            self.model, self.spec = checkpoint.to(device).eval(), checkpoint.spec
            own = self.model.law
        self.batch_size, self.max_shift, self.isolated = batch_size, max_shift, isolated
        asked = None if white_level is None else as_white(white_level)
        self.white_level = asked or self.spec.white_level
        named = {"own": own, "trained": None}
        self.law: DisplacementLaw | None = named[law] if isinstance(law, str) else law

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        revision: str | None = None,
        **options: Any,  # noqa: ANN401 (those of the class)
    ) -> Self:
        """Make a refiner of a shared model: weights in safetensors, a recipe in JSON, no code.

        Args:
            source: The folder that `card --to` or `save_pretrained` wrote, or the id of such a
                model on the Hugging Face hub, `OWNER/NAME`, which needs huggingface_hub.
            revision: Branch, tag or commit of the hub's model.
            **options: The other arguments of the class.

        Raises:
            BadInput: There is no such folder, its files aren't what was written, or the model
                can't be had from the hub.
        """
        return cls(folder_of(source, revision), **options)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the model for `from_pretrained`: `model.safetensors` and `config.json`.

        Args:
            folder: Where to write; it need not be there.

        Raises:
            BadInput: Such files are there already or can't be written, or the model was exported.
        """
        if self._graph is not None:
            msg = f"{self._graph.path}: is an exported graph; share the run it was made of"
            raise BadInput(msg)
        model = {CHECKPOINT_KEY: self.model.identity(), "state_dict": self.model.state_dict()}
        write_shared(model, expanded(str(folder)))

    def refine(
        self, image: Picture, boxes: BoxArray, labels: Sequence[str] | None = None
    ) -> BoxArray:
        """Return the boxes where they should be, as an array or tensor of the kind given.

        An invalid box (not finite, without area, outside the picture) is returned as it is, with a
        warning.

        Args:
            image: The picture; see `Picture`.
            boxes: Rough boxes (n, 4), `xyxy` in picture pixels.
            labels: The boxes' classes by name, for a model with a regressor for each.

        Raises:
            BadInput: The picture or the boxes are not of a shape and type that can be meant.
        """
        found = self.refine_with_std(image, boxes, labels)
        if found.unmoved:
            first = next(iter(found.unmoved))
            warnings.warn(
                f"{len(found.unmoved)} of {len(boxes)} boxes stay as they were; the first is box "
                f"{first}: {found.unmoved[first]}",
                stacklevel=2,
            )
        if isinstance(boxes, Tensor):
            return found.boxes.to(boxes.device)
        return found.boxes.numpy()

    def refine_with_std(
        self, image: Picture, boxes: np.ndarray | Tensor, labels: Sequence[str] | None = None
    ) -> Refinement:
        """Return the boxes, how far off the model deems each, and why some did not move.

        Args:
            image: The picture; see `Picture`.
            boxes: Rough boxes (n, 4), `xyxy` in picture pixels.
            labels: The boxes' classes by name, for a model with a regressor for each.

        Raises:
            BadInput: The picture or the boxes are not of a shape and type that can be meant.
        """
        (refinement,) = self.refine_batch([image], [boxes], None if labels is None else [labels])
        return refinement

    def fit_law(
        self,
        images: Sequence[Picture],
        boxes: Sequence[np.ndarray | Tensor],
        labels: Sequence[Sequence[str]] | None = None,
    ) -> DisplacementLaw:
        """Learn from a set of boxes how they are off, without any truth; for `law`.

        Where most lie beyond the trained range, it is learned from the others.

        Args:
            images: The pictures; see `Picture`.
            boxes: Rough boxes (n, 4) of each, `xyxy` in its pixels, all of one origin.
            labels: Each box's class by name, for a model with a regressor for each.

        Raises:
            BadInput: There are too few boxes, the model tells no standard deviations, or the
                pictures or boxes can't be meant.
        """
        if self._graph is not None:
            msg = f"{self._graph.path}: has its law inside; learn one by the checkpoint's Refiner"
            raise BadInput(msg)
        asked = self._asked(images, boxes, labels)
        refined, stds, beyond = self._look_at(asked)
        rows = refined.isfinite().all(dim=1) & ~of_another_kind(beyond)
        rough, index = asked.rough[asked.usable][rows], asked.index[asked.usable][rows]
        told = refined[rows], stds[rows], rough, self.spec.geometry, self.model.reliability
        return learn_law(said_of(*told), rough, asked.limits[asked.usable][rows], index)

    def refine_batch(
        self,
        images: Sequence[Picture],
        boxes: Sequence[np.ndarray | Tensor],
        labels: Sequence[Sequence[str]] | None = None,
    ) -> list[Refinement]:
        """Refine the boxes of several pictures at once, of whatever sizes.

        Args:
            images: The pictures; see `Picture`.
            boxes: Rough boxes (n, 4) of each, `xyxy` in its pixels.
            labels: Each box's class by name, for a model with a regressor for each.

        Raises:
            BadInput: A picture or boxes are not of a shape and type that can be meant.
        """
        asked = self._asked(images, boxes, labels)
        if self._graph is not None:
            return self._by_graph(self._graph, asked)
        refined, stds, beyond = self._look_at(asked)
        usable = asked.usable
        rough = asked.rough[usable]
        refined, stds, gains = self._weigh(refined, stds, asked)
        stds[beyond] = torch.nan
        plausible, reasons = clip_or_restore(
            refined, rough, asked.sizes[usable], self.spec.geometry, self.max_shift
        )
        unmoved = asked.unmoved | {int(usable[at]): reason for at, reason in reasons.items()}
        count = len(asked.rough)
        all_boxes, all_stds = asked.rough.clone(), rough.new_full((count, stds.shape[1]), torch.nan)
        all_boxes[usable], all_stds[usable] = plausible, stds
        all_gains = torch.full((count,), torch.nan)
        all_gains[usable] = gains
        all_beyond = torch.zeros(count, dtype=torch.bool)
        all_beyond[usable] = beyond
        return _by_picture(all_boxes, all_stds, all_gains, all_beyond, unmoved, asked.counts)

    def _asked(
        self,
        images: Sequence[Picture],
        boxes: Sequence[np.ndarray | Tensor],
        labels: Sequence[Sequence[str]] | None,
    ) -> Asked:
        """Read pictures and boxes, and tell which can't be refined."""
        if len(images) != len(boxes):
            msg = f"there are {len(images)} pictures and {len(boxes)} sets of boxes; give as many"
            raise BadInput(msg)
        pictures = [as_rgb(image, self.white_level, self.spec.part) for image in images]
        each = [as_boxes(one) for one in boxes]
        counts = [len(one) for one in each]
        rough = torch.cat([torch.zeros(0, 4), *each])
        index = torch.arange(len(each)).repeat_interleave(torch.tensor(counts).long())
        sizes = torch.tensor([picture.shape[:2] for picture in pictures]).long().reshape(-1, 2)
        numbers, unmoved = self._class_numbers(labels, counts)
        unmoved |= box_faults(rough, sizes[index], partly_outside=True)
        return Asked(pictures, rough, index, sizes[index], numbers, unmoved, counts)

    @torch.no_grad()
    def _look_at(self, asked: Asked) -> tuple[Boxes, Float[Tensor, "n t"], Bool[Tensor, " n"]]:
        """Return what the model says of the boxes that it can refine, and who lies beyond."""
        index, rough = asked.index[asked.usable], asked.rough[asked.usable]
        store = ImageStore.from_pictures(asked.pictures, at_once=False)
        if self.model.device != store.device:  # what isn't packed doesn't go there
            crop_boxes = self.spec.geometry.crop_boxes(rough)
            store.expect(index, crop_boxes, self.spec.geometry.size)
        store.on_host |= self.model.second is not None  # where that is cut isn't known yet
        return self._apply(store, index, rough, asked.numbers[asked.usable])

    def _by_graph(self, graph: ExportedGraph, asked: Asked) -> list[Refinement]:
        """Have an exported graph refine the boxes, picture by picture."""
        law = None if self.law is None else self.law.table()
        boxes, numbers = (torch.split(each, asked.counts) for each in (asked.rough, asked.numbers))
        given = zip(map(whole, asked.pictures), boxes, numbers, strict=True)
        found = [graph(*each, law) for each in given]
        said = graph.facts.max_shift
        none = GraphOutput(
            torch.zeros(0, 4),
            torch.zeros(0, self.spec.num_targets),
            torch.zeros(0),
            torch.zeros(0, dtype=torch.int64),
        )
        all_boxes, all_stds, gains, reasons = map(torch.cat, zip(none, *found, strict=True))
        told = {
            at: words_of(Reason(int(reasons[at])), said)
            for at in reasons.nonzero().flatten().tolist()
        }
        looked_at = torch.isin(
            reasons, torch.tensor([Reason.MOVED, Reason.TOO_FAR, Reason.NO_AREA])
        )
        beyond = looked_at & all_stds.isnan().any(dim=1) & graph.facts.marks_beyond
        told |= asked.unmoved
        return _by_picture(all_boxes, all_stds, gains, beyond, told, asked.counts)

    def _class_numbers(
        self, labels: Sequence[Sequence[str]] | None, counts: list[int]
    ) -> tuple[Int64[Tensor, " n"], dict[int, str]]:
        """Return the number of each box's class, and why boxes of unknown ones stay."""
        graph = self._graph
        per_class = graph.facts.per_class if graph else self.model.net.head.per_class
        if not per_class:
            return torch.zeros(sum(counts), dtype=torch.int64), {}
        classes = self.spec.classes
        if labels is None or [len(names) for names in labels] != counts:
            msg = f"the model has a regressor for each of {listed(classes)}; give each box's label"
            raise BadInput(msg)
        names = [name for picture in labels for name in picture]
        numbers = [classes.index(name) if name in classes else -1 for name in names]
        unknown = {
            at: f"is of class {names[at]!r}, which the model doesn't know"
            for at, number in enumerate(numbers)
            if number < 0
        }
        return torch.tensor(numbers, dtype=torch.int64), unknown

    def _weigh(
        self, boxes: Boxes, stds: Float[Tensor, "n t"], asked: Asked
    ) -> tuple[Boxes, Float[Tensor, "n t"], Float[Tensor, " n"]]:
        """Weigh what the model says against the law; returns the gains too, NaN without one."""
        moved, spread, gains = boxes.clone(), stds.clone(), torch.full((len(boxes),), torch.nan)
        if self.law is None:
            return moved, spread, gains
        rough, limits, index = (
            column[asked.usable] for column in (asked.rough, asked.limits, asked.index)
        )
        # By picture, so that nothing is rounded otherwise than for that one alone.
        group = index if self.isolated else torch.zeros_like(index)
        for each in sorted(set(group.tolist())):
            rows = group == each
            told = boxes[rows], stds[rows], rough[rows], self.spec.geometry
            under = move_under(self.law, *told, self.model.reliability, limits[rows])
            moved[rows], spread[rows], gains[rows] = under.boxes, under.stds, under.gain.float()
        return moved, spread, gains

    def _apply(
        self,
        store: ImageStore,
        index: Int64[Tensor, " n"],
        rough: Boxes,
        numbers: Int64[Tensor, " n"],
    ) -> tuple[Boxes, Float[Tensor, "n t"], Bool[Tensor, " n"]]:
        """Cut and refine batch by batch, on the model's device; returns who lies beyond too."""
        device, geometry = self.model.device, self.spec.geometry
        store = store.to(device)
        none = torch.zeros(0, dtype=torch.bool)
        found = [(rough[:0], rough.new_zeros(0, self.spec.num_targets), none)]
        for start in range(0, len(rough), self.batch_size):
            rows = torch.arange(start, start + self.batch_size)
            count = min(self.batch_size, len(rough) - start)
            rows = rows.clamp(max=len(rough) - 1) if self.isolated else rows[:count]
            proposals = rough[rows].to(device)
            cut = partial(_cut, store, index[rows].to(store.device))
            crops, labels = cut(geometry, proposals), numbers[rows].to(device)
            boxes, stds, beyond = self.model.refine_and_mark(crops, proposals, labels, cut)
            found.append((boxes[:count].cpu(), stds[:count].cpu(), beyond[:count].cpu()))
        boxes, stds, beyond = map(torch.cat, zip(*found, strict=True))
        return boxes, stds, beyond


def _refuse_settled(
    graph: ExportedGraph,
    device: str | torch.device,
    max_shift: float | None,
    law: DisplacementLaw | str,
) -> None:
    """Refuse what was settled when a model was exported.

    Raises:
        BadInput: It is to be something else.
    """
    if torch.device(device).type != "cpu":
        msg = f"{graph.path}: runs on the CPU; give the checkpoint to refine on {device}"
        raise BadInput(msg)
    if max_shift is not None and max_shift != graph.facts.max_shift:
        msg = (
            f"{graph.path}: was exported with max_shift {graph.facts.max_shift}, and {max_shift:g} "
            f"is asked for; export it with --max_shift {max_shift:g}"
        )
        raise BadInput(msg)
    if law == "trained" and graph.facts.law_shape is not None:
        msg = f"{graph.path}: weighs a displacement law; export it with --law trained"
        raise BadInput(msg)


def _by_picture(
    boxes: Boxes,
    stds: Float[Tensor, "n t"],
    gains: Float[Tensor, " n"],
    beyond: Bool[Tensor, " n"],
    unmoved: dict[int, str],
    counts: Sequence[int],
) -> list[Refinement]:
    """Part what was found by the pictures, each of which has so many boxes."""
    refinements, start = [], 0
    for count in counts:
        end = start + count
        own = {at - start: unmoved[at] for at in sorted(unmoved) if start <= at < end}
        rows = slice(start, end)
        refinements.append(Refinement(boxes[rows], stds[rows], own, gains[rows], beyond[rows]))
        start = end
    return refinements


def _cut(
    store: ImageStore, index: Int64[Tensor, " b"], geometry: CropGeometry, boxes: Boxes
) -> Float[Tensor, "b 3 s s"]:
    places = geometry.crop_boxes(boxes).to(store.device)
    # On CUDA compiling would take longer than most sets of boxes.
    kernel = kernel_for("auto" if store.device.type == "cpu" else False, store.device)
    return cut_crops(store, index, places, geometry.size, kernel).to(boxes.device)


def refine(
    image: Picture, boxes: BoxArray, checkpoint: str | PathLike[str], device: str = "cpu"
) -> BoxArray:
    """Refine boxes on one picture; for many pictures make a `Refiner` once.

    Args:
        image: The picture; see `Picture`.
        boxes: Rough boxes (n, 4), `xyxy` in picture pixels.
        checkpoint: A checkpoint that a run wrote, or the run's folder.
        device: Where to run.

    Returns:
        The boxes where they should be, as an array or tensor of the kind given.

    Examples:
        >>> refine("a.png", np.zeros((0, 4)), "nowhere.ckpt")
        Traceback (most recent call last):
        lightning_bbox.BadInput: nowhere.ckpt: no such checkpoint; check its path
    """
    return Refiner(checkpoint, device).refine(image, boxes)
