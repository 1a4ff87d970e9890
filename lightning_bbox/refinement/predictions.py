"""What `predict` leaves behind: refined annotation files, a table and a sheet of the changes."""

import csv
import io
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from lightning_bbox.annotations.validity import LEFT_OUT
from lightning_bbox.annotations.write import (
    DECIMALS,
    Decimals,
    refuse_decimals,
    write_boxes,
    written_or_flat,
)
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import (
    encoded,
    make_folder,
    remove_leftovers_of,
    save_picture,
    write_atomically,
)
from lightning_bbox.core.messages import say
from lightning_bbox.data.boxes import BoxDataModule, RoughBoxes
from lightning_bbox.evaluation.metrics import Refined
from lightning_bbox.geometry.boxes import Boxes, box_sizes
from lightning_bbox.geometry.class_laws import ClassLaws, learn_laws
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.geometry.trained_range import of_another_kind
from lightning_bbox.geometry.weighing import (
    placed,
    refuse_other_coordinates,
    refuse_untold,
    said_of,
)
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.refinement.outcomes import (
    clip_or_restore,
    farthest_px,
    refuse_max_shift,
    shifts_px,
)
from lightning_bbox.refinement.reviewing.review_page import (
    MOST_REVIEWED,
    Moved,
    likeliest_first,
    refuse_most,
    write_review,
)
from lightning_bbox.reports.callbacks import list_skipped
from lightning_bbox.reports.sheets import draw_changes

_MOST_DRAWN = 48
_RECORD = "overwritten.json"


class PredictionFiles(pl.Callback):
    """Write the refined boxes into copies of their annotation files, and list what changed.

    The copies lie in `refined/`, laid out as the originals. `changes.csv` has a line for each box,
    `changes.png` shows the largest changes, `review.html` lets a person decide on each, and
    `unchanged.txt` says which boxes stay and why, `skipped.txt` which of them are invalid or in
    pictures that aren't there. What the files had before is kept in `before/`
    where they are overwritten, and `overwritten.json` says which is which.

    Args:
        folder: The run's folder.
        max_shift: Largest shift of an edge to believe, in px.
        overwrite: Write the refined boxes over the originals too.
        law: How the boxes are off: `auto` learns it from them all, where there are fifty, `own` is
            what the model has for fewer, `trained` takes for granted what it was trained on, and a
            path is that of a law learned before.
        decimals: How many decimals of a pixel to write; `auto` is none in files that hold only
            whole numbers, and otherwise three.
        review: How many boxes `review.html` may have; 0 writes none.
    """

    def __init__(
        self,
        folder: Path,
        max_shift: float | None = None,
        overwrite: bool = False,
        law: str = "auto",
        decimals: Decimals = "auto",
        review: int = MOST_REVIEWED,
    ) -> None:
        refuse_max_shift(max_shift)
        refuse_decimals(decimals)
        refuse_most(review)
        self.folder, self.max_shift, self.overwrite = folder, max_shift, overwrite
        self.law, self.decimals, self.review = law, decimals, review
        self._given = None if law in ("auto", "own", "trained") else _law_at(Path(law))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a law of other coordinates than the model's, and the own one where there is none.

        Raises:
            BadInput: It is that.
        """
        assert isinstance(pl_module, OffsetModel)
        if self.law == "own" and pl_module.law is None:
            msg = (
                "the checkpoint has no law of its own; take that which validate leaves of it, or "
                "--law auto"
            )
            raise BadInput(msg)
        if self._given is not None:
            refuse_other_coordinates(self._given.every, pl_module.data.num_targets)

    @rank_zero_only
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write everything, the table of changes last: where it is, all is."""
        assert isinstance(pl_module, OffsetModel)
        data = pl_module.data
        assert isinstance(data, BoxDataModule)
        assert data.rough is not None
        rough, table = data.rough, data.rough.table
        make_folder(self.folder)
        beyond = self._beyond(rough, pl_module)
        stay = torch.zeros_like(beyond)
        if self.law == "auto":
            stay[rough.chosen] = of_another_kind(beyond[rough.chosen])
        found, gains, sentence = self._weigh(rough, pl_module, data.geometry, stay)
        boxes, stds, reasons = self._outcome(rough, found, data.geometry)
        for at in stay.nonzero().flatten().tolist():
            reasons[at] = "lies beyond the trained range, as most do (--law trained moves it)"
        stds[beyond] = math.nan
        boxes = self._rounded(rough, boxes, reasons)
        unchanged = [sentence.removesuffix(LEFT_OUT) for sentence in table.not_read]
        unchanged += [f"{name}: {r}" for name, r in zip(table.ids, reasons, strict=True) if r]
        text = "".join(f"{sentence}; left as it is\n" for sentence in unchanged)
        # First, for it tells that what is beside it is no data, even where a run is killed.
        write_atomically(self.folder / "unchanged.txt", encoded(text))
        list_skipped(self.folder, table.not_read)
        refined = write_boxes(table, boxes, self.folder / "refined", self.decimals)
        if self.overwrite:
            self._overwrite(rough, refined)
        moved = shifts_px(boxes, table.boxes, data.geometry)
        edges = farthest_px(boxes, table.boxes, data.geometry.px(table.boxes))
        largest = edges.argsort(descending=True, stable=True)
        drawn = [at for at in largest[:_MOST_DRAWN].tolist() if edges[at] > 0]
        save_picture(self.folder / "changes.png", draw_changes(data, boxes, drawn))
        weighed = torch.full((len(boxes), 2), math.nan)
        weighed[rough.chosen] = gains
        changed = (boxes != table.boxes).any(dim=1)
        gain, wrong = weighed.T
        order = likeliest_first(changed.nonzero().flatten().tolist(), wrong, gain, moved)
        to_review = Moved(boxes, order, wrong, gain, self.decimals)
        reviewed = write_review(self.folder, data, to_review, self.review)
        rows = change_rows(rough, boxes, stds, data.geometry, reasons, weighed, beyond)
        write_atomically(self.folder / "changes.csv", encoded(rows))
        told = [sentence, *_far_off(beyond, bool(stay.any()))]
        if data.num_targets == 2:
            told.append("this model moves centres: sizes stay as they are (data.num_targets 4)")
        notes = "\n".join([*data.source.notes, *told])
        self._say(notes, moved, changed, len(unchanged), reviewed, data.geometry)

    def _beyond(self, rough: RoughBoxes, model: OffsetModel) -> Bool[Tensor, " n"]:
        """Tell which of the table's boxes lie farther off than those of the training."""
        found = model.predictions
        beyond = torch.zeros(len(rough.table.boxes), dtype=torch.bool)
        beyond[rough.chosen] = model.are_beyond(found.traits) & found.seen
        return beyond

    def _weigh(
        self,
        rough: RoughBoxes,
        model: OffsetModel,
        geometry: CropGeometry,
        stay: Bool[Tensor, " n"],
    ) -> tuple[Refined, Float[Tensor, "n 2"], str]:
        """Weigh what the model says against how the boxes are off, but for those that stay.

        Returns the boxes, the expected gain of IoU and the probability that each was wrong (NaN
        without a law), and how they are off in words.
        """
        found = model.predictions
        gains = torch.full((len(found.boxes), 2), math.nan)
        old = rough.table.boxes[rough.chosen]
        stays = stay[rough.chosen]
        found = found._replace(boxes=torch.where(stays[:, None], old, found.boxes))
        seen = found.seen & found.boxes.isfinite().all(dim=1) & ~stays
        told = old[seen], geometry, model.reliability
        said = said_of(found.boxes[seen], found.stds[seen], *told)
        index = rough.table.image_index[rough.chosen][seen]
        limits = rough.table.sizes[index].flip(-1).to(old.dtype)
        labels = rough.table.labels[rough.chosen][seen].tolist()
        names = [rough.table.classes[label] for label in labels]
        learn = partial(learn_laws, said, old[seen], limits, index, names)
        laws, sentence = self._laws_of(learn, model.law)
        if laws is None:
            return found, gains, sentence
        laws.save(self.folder / "law.json")
        refuse_untold(found.stds[seen])
        weighed = placed(laws.move(said, names), said, *told, limits)
        boxes, stds = found.boxes.clone(), found.stds.clone()
        boxes[seen], stds[seen] = weighed.boxes, weighed.stds
        gains[seen] = torch.stack([weighed.gain, weighed.wrong], dim=1)
        return found._replace(boxes=boxes, stds=stds), gains, f"{sentence} (law.json)"

    def _laws_of(
        self, learn: Callable[[], ClassLaws], own: DisplacementLaw | None
    ) -> tuple[ClassLaws | None, str]:
        """Return the laws that boxes move under, None for that of the training, and say which."""
        if self._given is not None:
            return self._given, self._given.words()
        if self.law == "trained":
            return None, "boxes move as if they were off as those of the training were"
        problem = ""
        if self.law == "auto":
            try:
                laws = learn()
            except BadInput as refusal:
                problem = f"{refusal}; so "
            else:
                return laws, laws.words()
        if own is None:
            return None, f"{problem}they move as if off as in training"
        right = f"{100 * own.right:.0f} %"
        told = f"boxes move by the model's own law, as if {right} of them were right"
        return ClassLaws(own), problem + told

    def _outcome(
        self, rough: RoughBoxes, found: Refined, geometry: CropGeometry
    ) -> tuple[Boxes, Float[Tensor, "n t"], list[str]]:
        """Return each of the table's boxes after refinement, how sure of it, and why one stays."""
        table, chosen = rough.table, rough.chosen
        old, seen = table.boxes[chosen], found.seen[:, None]
        new, unmoved = clip_or_restore(
            torch.where(seen, found.boxes, old),
            old,
            table.sizes[table.image_index[chosen]],
            geometry,
            self.max_shift,
            least_side=1.0 if table.format.convention.inclusive else 0.0,
        )
        stays = (found.boxes == old).all(dim=1)
        new = torch.where(stays[:, None], old, new)  # as it is, even where it overhangs its picture
        for at in stays.nonzero().flatten().tolist():
            unmoved.setdefault(at, "is best left where it is")
        for at in (~found.seen).nonzero().flatten().tolist():
            unmoved[at] = "was left out by trainer.limit_predict_batches"
        boxes, reasons = table.boxes.clone(), list(rough.reasons)
        stds = torch.full((len(boxes), found.stds.shape[1]), math.nan)
        boxes[chosen], stds[chosen] = new, found.stds.where(seen, math.nan)
        for at, reason in unmoved.items():
            reasons[int(chosen[at])] = reason
        return boxes, stds, reasons

    def _rounded(self, rough: RoughBoxes, boxes: Boxes, reasons: list[str]) -> Boxes:
        """Return the boxes as they will be written, and give those a reason that so stay."""
        written, flat = written_or_flat(rough.table, boxes, self.decimals)
        stay = (boxes != rough.table.boxes) & (written == rough.table.boxes).all(dim=1)[:, None]
        for at in stay.any(dim=1).nonzero().flatten().tolist():
            whole = " to whole pixels" if rough.table.entries[at][0] in rough.table.whole else ""
            so = "would have no area" if flat[at] else "is where it was"
            reasons[at] = f"{so} once rounded{whole} (--decimals)"
        return written

    def _overwrite(self, rough: RoughBoxes, refined: list[Path]) -> None:
        """Exchange the originals, each whole, once all of them are saved in `before/`."""
        before = write_boxes(rough.table, rough.table.boxes, self.folder / "before")
        originals = [(rough.table.root / file).resolve() for file in rough.table.files]
        record = {
            str(original): [str(path.relative_to(self.folder)) for path in copies]
            for original, *copies in zip(originals, before, refined, strict=True)
        }
        write_atomically(self.folder / _RECORD, json.dumps(record, indent=2).encode())
        for original, path in zip(originals, refined, strict=True):
            write_atomically(original, path.read_bytes())

    def _say(
        self,
        notes: str,
        shifts: Float[Tensor, "n 2"],
        changed: Bool[Tensor, " n"],
        unchanged: int,
        reviewed: str,
        geometry: CropGeometry,
    ) -> None:
        distance = shifts[changed].norm(dim=1)
        told = "none moved"
        if len(distance):
            told = (
                f"{len(distance)} moved, their centres by {distance.mean():.2f} px in the mean "
                f"(median {distance.median():.2f}, largest {distance.max():.2f}); "
                f"a px is 1/{geometry.reference_size:g} of a crop's side"
            )
        where = "written over the originals" if self.overwrite else "the originals are untouched"
        say(
            f"{notes}\n"
            f"of {len(changed)} boxes {told}\n"
            f"refined annotations     {self.folder / 'refined'} ({where})\n"
            f"each box, old and new   {self.folder / 'changes.csv'}\n"
            f"the largest changes     {self.folder / 'changes.png'}\n"
            f"to decide on each       {reviewed}\n"
            f"left as they are: {unchanged}, and why: {self.folder / 'unchanged.txt'}"
        )


def _far_off(beyond: Bool[Tensor, " n"], stay: bool) -> list[str]:
    """Say how many boxes lie beyond the trained range, where any do, and whether they stay."""
    if not bool(beyond.any()):
        return []
    so = "as these are most of them, they stay (--law trained moves them)"
    sentence = (
        f"{int(beyond.sum())} of {len(beyond)} boxes seem farther off than those of the training, "
        f"or look unlike them; {so if stay else 'how far off they are now is not told'} (column "
        f"beyond of changes.csv)"
    )
    return [sentence]


def _law_at(path: Path) -> ClassLaws:
    if not path.exists():
        msg = f"law is {str(path)!r}, which is no file; choose auto, own, trained, or a law.json"
        raise BadInput(msg)
    return ClassLaws.load(path)


def put_originals_back(folder: Path) -> None:
    """Put back what a stopped `predict` had begun to overwrite, so that it can begin again.

    Args:
        folder: The run's folder.

    Raises:
        BadInput: An original was changed since.
    """
    record = folder / _RECORD
    if not record.is_file():
        return
    originals = {Path(name): copies for name, copies in json.loads(record.read_text()).items()}
    for original, copies in originals.items():
        now = original.read_bytes() if original.is_file() else None
        if now not in [(folder / copy).read_bytes() for copy in copies]:
            problem = (
                f"was changed since a predict that was stopped kept it in {folder / copies[0]}"
            )
            raise BadInput.at(str(original), problem, f"see which you want, and remove {record}")
    for original, (kept, _) in originals.items():
        remove_leftovers_of(original)
        write_atomically(original, (folder / kept).read_bytes())
    record.unlink()
    rank_zero_warn("a predict was stopped while it overwrote; the originals are put back first")


def change_rows(
    rough: RoughBoxes,
    boxes: Boxes,
    stds: Float[Tensor, "n t"],
    geometry: CropGeometry,
    reasons: list[str],
    weighed: Float[Tensor, "n 2"],
    beyond: Bool[Tensor, " n"],
) -> str:
    r"""Compose the table of changes as CSV, a line for each box in the files' order.

    Args:
        rough: What was read.
        boxes: The box of each of the table's, after refinement.
        stds: How far off the model deems them, in px and log size, NaN where it can't tell.
        geometry: What a px is.
        reasons: Why a box stays where it was, or nothing.
        weighed: Expected gain of IoU and probability that the box was wrong, NaN without a law.
        beyond: Which boxes lie farther off than those of the training.

    Returns:
        Columns: id, picture, class; the old and the new corners; the centre's shift in px, in
        picture pixels and as a fraction of the old box; with four targets the change of log size;
        the standard deviations; expected gain of IoU and probability that the old box was wrong;
        `yes` where the box lies beyond the trained range; why a box stays.
    """
    table = rough.table
    sizes = stds.shape[1] == 4
    columns = ["id", "image", "label", "xmin", "ymin", "xmax", "ymax"]
    columns += [f"new_{name}" for name in columns[3:]]
    columns += [f"shift_{axis}_{unit}" for unit in ("px", "pixels", "fraction") for axis in "xy"]
    columns += ["log_width", "log_height"] * sizes
    columns += ["std_x_px", "std_y_px"] + ["std_log_width", "std_log_height"] * sizes
    columns += ["gain", "wrong", "beyond", "unchanged"]
    shifts = shifts_px(boxes, table.boxes, geometry)
    pixels = shifts * geometry.px(table.boxes)
    numbers = [table.boxes, boxes, shifts, pixels, pixels / box_sizes(table.boxes)]
    if sizes:
        numbers.append((box_sizes(boxes) / box_sizes(table.boxes)).log())
    rows = torch.cat([*numbers, stds, weighed], dim=1).double().tolist()
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for at, row in enumerate(rows):
        image, label = table.images[table.image_index[at]], table.classes[table.labels[at]]
        mark = "yes" if beyond[at] else ""
        writer.writerow([table.ids[at], image, label, *map(short_number, row), mark, reasons[at]])
    return stream.getvalue()


def short_number(number: float) -> str:
    """Write a number to the thousandth, and nothing where there is none.

    Examples:
        >>> short_number(2.50004), short_number(float("nan"))
        ('2.5', '')
    """
    if math.isnan(number):
        return ""
    return f"{round(number, DECIMALS) + 0.0:.{DECIMALS}f}".rstrip("0").rstrip(".")
