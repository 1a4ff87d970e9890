"""What belongs together of a data module's options: how files are read, and who trains."""

from dataclasses import dataclass
from typing import Literal

from lightning_bbox.annotations.formats.format import Units
from lightning_bbox.annotations.formats.known import FormatName
from lightning_bbox.annotations.formats.voc import VocBase
from lightning_bbox.annotations.headers import Exif
from lightning_bbox.annotations.splits import SplitNames, check_names
from lightning_bbox.core.errors import BadInput


@dataclass(frozen=True)
class Reading:
    """How annotation files are found and read.

    Args:
        format: Format of the annotations.
        annotations: Annotation files or folders, relative to the root, where the usual places don't
            hold them.
        images: Folder of the pictures, or several, relative to the root.
        voc_base: Coordinate of the first pixel in VOC files; `edges` where xmax is xmin and the
            width (CVAT).
        on_bad: Leave bad boxes out (`predict`: as they are) and list them, or refuse the first.
        on_missing: Refuse pictures that aren't there, or leave them out with their boxes.
        exif: What boxes are drawn on: `apply` says on pictures as EXIF turns them, `ignore` on
            pictures as they are stored; `auto` goes by the sizes that are stated.
        units: What the numbers are stated in, `pixels` or `fraction` (of the picture), where it is
            not what the format says.
        columns: Columns of a table by what they mean, as in `{xmin: Roi.X1}`: image, xmin, ymin,
            xmax, ymax, or x, y, w, h, or cx, cy, w, h, or bbox (a cell of x, y, width, height) or
            corners; label, split, group, score, difficult, ignore. Numbers, from 0, where there is
            no header.
        delimiter: What stands between the cells of a table; by default comma, semicolon or tab.
        allow_outside: Whether files may lie outside the root, as links do.
        max_pixels: The most pixels a picture may have, in the whole process; by default Pillow's
            limit, 89,478,485. Of TIFFs with more only the tiles or strips are decoded that crops
            lie in, which takes the extra `tiff`.
        page: Which page of TIFFs is read, from 0; a trained model knows which.
        bands: The three bands of TIFFs that are shown as red, green and blue, or one as grey, from
            0; likewise. By default the colours, or the only band.
    """

    format: FormatName = "auto"
    annotations: str | list[str] | None = None
    images: str | list[str] | None = None
    voc_base: VocBase = 1
    on_bad: Literal["skip", "error"] = "skip"
    on_missing: Literal["error", "skip"] = "error"
    exif: Exif = "auto"
    units: Units | None = None
    columns: dict[str, str | int] | None = None
    delimiter: str | None = None
    allow_outside: bool = False
    max_pixels: int | None = None
    page: int = 0
    bands: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much validates and tests where no split says so, by group.

    Args:
        val_fraction: Share of the training groups to validate on, where no validation split is
            there.
        test_fraction: Share of the groups to test on, where no test split is there.
        seed: Seed of these shares; not the seed of the run, so that runs stay comparable.
        fold: Which share of the training groups validates, from 0, for cross-validation: the folds
            share no group, and together they are all.
        test_fold: Which share of the groups tests, likewise.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    fold: int = 0
    test_fold: int = 0

    def __post_init__(self) -> None:
        """Check the shares."""
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= (share := getattr(self, name)) < 1:
                msg = f"data.splits.{name} is {share}; choose one in [0, 1)"
                raise BadInput(msg)


@dataclass(frozen=True, kw_only=True)
class Splits(Shares):
    """Which pictures train, validate and test.

    Args:
        train: Split names, or split files relative to the root; all that isn't named otherwise by
            default.
        val: The same for validation.
        test: The same for the test.
        test_groups: Groups to test on, instead of `test`.
        group_pattern: Regular expression whose first group, found in a picture's path, names its
            group.
        stated: Whether splits that the files state are used; otherwise all pictures are split by
            the shares.

    Raises:
        BadInput: Names contradict each other.

    Examples:
        >>> Splits(train="a", val=["b"]).names()
        SplitNames(train=['a'], val=['b'], test=[])
    """

    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    test_groups: list[str] | None = None
    group_pattern: str | None = None
    stated: bool = True

    def __post_init__(self) -> None:
        """Check the shares and the names."""
        super().__post_init__()
        if not self.stated and (self.test_groups or any(self.names())):
            msg = "data.splits: stated is false, but splits are named; leave out one or the other"
            raise BadInput(msg)
        if self.test and self.test_groups:
            msg = "data.splits: test and test_groups are both set; name the test one way"
            raise BadInput(msg)
        check_names(self.names())

    def names(self) -> SplitNames:
        """Return which of the files' splits serve which role."""
        return SplitNames(*(_as_list(names) for names in (self.train, self.val, self.test)))


def _as_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
