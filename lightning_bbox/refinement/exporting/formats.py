"""A graph as a file: ONNX, a program of `torch.export`, or a library made by AOTInductor."""

import json
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as _symbols

from lightning_bbox.core.compiling import has_cxx_compiler
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.messages import quietly
from lightning_bbox.refinement.exported import FACTS, INPUTS, OUTPUTS, GraphFacts, GraphFormat
from lightning_bbox.refinement.exporting.graph import RefinementGraph

OPSET = 18
"""Of ONNX: the GridSample of opset 20 is silently wrong in TensorRT."""


def facts_of(graph: RefinementGraph, kind: GraphFormat, licence: str) -> GraphFacts:
    """Return what a caller must know of a graph.

    Args:
        graph: The graph.
        kind: What it is written as.
        licence: Under which terms the model may be used.
    """
    rows, columns = graph.law.shape if graph.has_law else (0, 0)
    return GraphFacts(
        format=kind,
        spec=graph.spec,
        per_class=graph.model.net.head.per_class,
        law_shape=(rows, columns) if graph.has_law else None,
        max_shift=graph.max_shift,
        version=version("lightning_bbox"),
        licence=licence,
        marks_beyond=graph.model.range is not None,
    )


def write_graph(graph: RefinementGraph, facts: GraphFacts, path: Path) -> None:
    """Write a graph into a file.

    Args:
        graph: The graph.
        facts: What the file is to say of it; its format among them.
        path: The file.

    Raises:
        BadInput: A part of the model can't be traced or written, or what writes it isn't there.
    """
    with quietly(*_TALKERS):
        _WRITERS[facts.format](_traced(graph), facts, path)


def _traced(graph: RefinementGraph) -> ExportedProgram:
    """Trace a graph on made-up boxes; any number of them, and pictures of any size, will do."""
    picture = torch.zeros(60, 70, 3, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 10.0, 30.0, 40.0]]).repeat(3, 1)
    boxes_dims = {0: Dim.DYNAMIC(min=0)}
    dims = [{0: Dim.DYNAMIC(min=1), 1: Dim.DYNAMIC(min=1)}, boxes_dims]
    given: list[Tensor | None] = [picture, boxes, None, None]
    if graph.model.net.head.per_class:
        given[2] = torch.zeros(3, dtype=torch.int64)
    if graph.has_law:
        given[3] = torch.full_like(graph.law, torch.nan)
    every = [*dims, {0: Dim.DYNAMIC(min=0)}, None]
    taken = {name: each for name, each in zip(INPUTS, given, strict=True) if each is not None}
    shapes = {name: dim for name, dim in zip(INPUTS, every, strict=True) if name in taken}
    try:
        # Else the sizes 0 and 1 are taken for constants, or ruled out without a word.
        oblivious = _symbols.patch(backed_size_oblivious=True)  # type: ignore[attr-defined] # untyped
        with torch.no_grad(), oblivious:
            return torch.export.export(graph, (), taken, dynamic_shapes=shapes, strict=False)
    # A layer of the user's own may do what can't be traced, and torch raises any of many errors.
    except Exception as error:
        net = graph.model.net
        parts = ", ".join(type(part).__name__ for part in (net.preprocess, net.backbone, net.head))
        msg = (
            f"the model ({parts}) can't be traced to one graph "
            f"({str(error).splitlines()[0][:200]}); refine by a Refiner"
        )
        raise BadInput(msg) from error


def _write_onnx(program: ExportedProgram, facts: GraphFacts, path: Path) -> None:
    try:
        import onnx_ir
        import onnxscript  # noqa: F401 (torch's exporter is made of it)
    except ImportError as error:
        extra = "pip install 'lightning_bbox[onnx]'"
        msg = f"--format onnx needs {error.name}; install it with {extra}"
        raise BadInput(msg) from error
    try:
        with torch.no_grad():
            made = torch.onnx.export(
                program,
                (),
                input_names=facts.inputs,
                output_names=list(OUTPUTS),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch raises any of many errors where an operator has no spelling
        reason = str(error.__cause__ or error).splitlines()[0][:300]
        msg = f"the model can't be written as ONNX ({reason}); take --format pt2 or aoti"
        raise BadInput(msg) from error
    assert made is not None
    model = made.model
    model.producer_name, model.producer_version = "lightning_bbox", facts.version
    told = facts.plain()
    for name, value in {FACTS: told, "classes": told["spec"]["classes"], **told}.items():
        model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    sizes = dict.fromkeys(("boxes", "classes", *OUTPUTS), ("n",)) | {"picture": ("height", "width")}
    for each in (*model.graph.inputs, *model.graph.outputs):
        for dim, name in enumerate(sizes.get(str(each.name), ())):
            assert each.shape is not None
            each.shape[dim] = name
        if each.name == "law":
            default = torch.full(facts.law_shape or (0, 0), torch.nan, dtype=torch.float64)
            each.const_value = onnx_ir.tensor(default.numpy(), name="law")
            model.graph.register_initializer(each)
    made.save(path)


def _write_pt2(program: ExportedProgram, facts: GraphFacts, path: Path) -> None:
    told = json.dumps(facts.plain())
    torch.export.save(program, path, extra_files={f"{FACTS}.json": told})


def _write_aoti(program: ExportedProgram, facts: GraphFacts, path: Path) -> None:
    if not has_cxx_compiler():
        msg = "--format aoti needs a C++ compiler; install g++, or take --format pt2 or onnx"
        raise BadInput(msg)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    with zipfile.ZipFile(path, "a") as file:
        folder = file.namelist()[0].partition("/")[0]
        file.writestr(f"{folder}/extra/{FACTS}.json", json.dumps(facts.plain()))


_TALKERS = "torch.onnx", "torch.export", "torch._inductor", "onnxscript", "onnx_ir"
"""Loggers of what exports."""

_WRITERS: dict[GraphFormat, Callable[[ExportedProgram, GraphFacts, Path], None]] = {
    "onnx": _write_onnx,
    "pt2": _write_pt2,
    "aoti": _write_aoti,
}
