"""Models that `export` wrote, run by what they are made for: ONNX Runtime, or PyTorch itself."""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import OffsetSpec, as_white
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.refinement.outcomes import Reason

GraphFormat = Literal["onnx", "pt2", "aoti"]
"""ONNX; a program of `torch.export`; a library made by AOTInductor."""

INPUTS = ("picture", "boxes", "classes", "law")
OUTPUTS = ("refined", "stds", "gain", "reason")
FACTS = "lightning_bbox"
"""The key of a file's metadata under which its facts stand."""
SUFFIXES = {".onnx": ("onnx",), ".pt2": ("pt2", "aoti")}

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


class GraphOutput(NamedTuple):
    """What a graph says of the boxes of a picture.

    Attributes:
        boxes: The boxes, `xyxy` in picture pixels, inside the picture.
        stds: How far off each is deemed, x and y in px (and log sizes); NaN where that isn't told,
            as of boxes beyond the trained range.
        gain: Rise of the expected IoU with the truth; NaN without a law.
        reason: The `Reason` of each.
    """

    boxes: Boxes
    stds: Float[Tensor, "n t"]
    gain: Float[Tensor, " n"]
    reason: Int64[Tensor, " n"]


@dataclass(frozen=True)
class GraphFacts:
    """What a caller must know of a graph; it stands in the file's metadata, as JSON.

    Args:
        format: What the file is.
        spec: The data that the model knows: crops, what a px is, classes.
        per_class: Whether it must be told the boxes' classes.
        law_shape: Rows and columns of a law; None where it takes none.
        max_shift: Largest shift of an edge that it believes, in px.
        version: That of this package.
        licence: Under which terms the model may be used.
        marks_beyond: Whether it tells boxes that lie farther off than those of the training: they
            move, and their deviations are NaN.
    """

    format: GraphFormat
    spec: OffsetSpec
    per_class: bool
    law_shape: tuple[int, int] | None
    max_shift: float | None
    version: str
    licence: str
    marks_beyond: bool = False

    @property
    def inputs(self) -> list[str]:
        """Names of what the graph takes, in order."""
        taken = True, True, self.per_class, self.law_shape is not None
        return [name for name, is_taken in zip(INPUTS, taken, strict=True) if is_taken]

    def plain(self) -> dict[str, Any]:
        """Return them as plain values, with what the numbers of reasons mean."""
        px = f"1/{self.spec.geometry.reference_size:g} of the crop's side"
        reasons = {str(int(reason)): reason.name.lower() for reason in Reason}
        return asdict(self) | {"px": px, "reasons": reasons}

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> Self:
        """Make them of what `plain` returned.

        Raises:
            ValueError, TypeError, KeyError: It isn't that.
        """
        spec = dict(told["spec"])
        geometry = CropGeometry(**spec.pop("geometry"))
        classes = tuple(spec.pop("classes"))
        white = spec.pop("white_level", None)
        white = None if white is None else as_white(white)
        part = TiffPart(**spec.pop("part", {}))
        names = ("format", "per_class", "max_shift", "version", "licence")
        law = told["law_shape"]
        return cls(
            **{name: told[name] for name in names},
            spec=OffsetSpec(
                geometry=geometry, classes=classes, white_level=white, part=part, **spec
            ),
            law_shape=None if law is None else (int(law[0]), int(law[1])),
            marks_beyond=bool(told.get("marks_beyond")),  # older ones don't
        )


class ExportedGraph:
    """A graph of `lightning-bbox export`, ready to run on the CPU.

    Args:
        path: The file.

    Attributes:
        facts: What the file says of itself.

    Raises:
        BadInput: The file isn't one of `export`, or what runs it isn't installed.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            msg = f"{path}: no such exported model; check its path"
            raise BadInput(msg)
        load = _load_onnx if path.suffix == ".onnx" else _load_torch
        self.path = path
        self.facts, self._run = load(path)

    def __call__(
        self,
        picture: UInt8[np.ndarray, "h w 3"],
        boxes: Boxes,
        classes: Int64[Tensor, " n"] | None = None,
        law: Float64[Tensor, "k m"] | None = None,
    ) -> GraphOutput:
        """Refine the boxes of one picture.

        Args:
            picture: RGB.
            boxes: Rough boxes, `xyxy` in picture pixels.
            classes: Their classes' numbers, where the model needs them.
            law: How they are off (see `DisplacementLaw.table`); the graph's own by default.

        Raises:
            BadInput: The law doesn't fit into the graph.
        """
        taken = {"picture": picture, "boxes": boxes.float().numpy()}
        if self.facts.per_class:
            assert classes is not None
            taken["classes"] = classes.numpy()
        if self.facts.law_shape is not None:
            taken["law"] = self._law(law).numpy()
        elif law is not None:
            msg = f"{self.path}: takes no displacement law; export the model with --law own"
            raise BadInput(msg)
        return GraphOutput(*(torch.from_numpy(each) for each in self._run(taken)))

    def _law(self, law: Float64[Tensor, "k m"] | None) -> Float64[Tensor, "k m"]:
        """Return a law with as many rows as the graph has room for; NaN for its own."""
        assert self.facts.law_shape is not None
        rows, columns = self.facts.law_shape
        if law is None:
            return torch.full((rows, columns), torch.nan, dtype=torch.float64)
        if law.shape[1] != columns or len(law) > rows:
            msg = (
                f"{self.path}: takes laws of {rows - 1} parts and {columns // 2} coordinates, and "
                f"this one has {len(law) - 1} and {law.shape[1] // 2}; export the model with it"
            )
            raise BadInput(msg)
        return torch.cat([law, law.new_zeros(rows - len(law), columns)])


def is_exported(path: Path) -> bool:
    """Tell whether a path names an exported model, by its suffix."""
    return path.suffix in SUFFIXES


def _facts_of(path: Path, told: str | None) -> GraphFacts:
    try:
        return GraphFacts.from_plain(json.loads(told or ""))
    except (ValueError, TypeError, KeyError) as error:
        remedy = "give a file that `lightning-bbox export` wrote"
        raise BadInput.at(str(path), "isn't an exported model of lightning_bbox", remedy) from error


def _load_onnx(path: Path) -> tuple[GraphFacts, Run]:
    try:
        import onnxruntime
    except ImportError as error:
        msg = f"{path}: needs ONNX Runtime; install it with pip install 'lightning_bbox[onnx]'"
        raise BadInput(msg) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # it warns of every input that has a default
    try:
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        problem = f"ONNX Runtime can't load it ({str(error).splitlines()[0]})"
        raise BadInput.at(str(path), problem, "export the model again") from error
    facts = _facts_of(path, session.get_modelmeta().custom_metadata_map.get(FACTS))
    return facts, lambda taken: list(session.run(list(OUTPUTS), dict(taken)))


def _load_torch(path: Path) -> tuple[GraphFacts, Run]:
    try:
        with zipfile.ZipFile(path) as file:
            name = next((name for name in file.namelist() if name.endswith(f"/{FACTS}.json")), "")
            told = file.read(name).decode() if name else None
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        remedy = "give a file that `lightning-bbox export` wrote"
        raise BadInput.at(str(path), "isn't an exported model of lightning_bbox", remedy) from error
    facts = _facts_of(path, told)
    if facts.format == "pt2":
        program: Callable[..., Any] = torch.export.load(path).module(check_guards=False)
    else:
        program = torch._inductor.aoti_load_package(str(path))

    def run(taken: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        whole = {name: np.require(taken[name], requirements=["C", "W"]) for name in facts.inputs}
        with torch.no_grad():
            found = program(**{name: torch.from_numpy(each) for name, each in whole.items()})
        return [each.numpy() for each in found]

    return facts, run
