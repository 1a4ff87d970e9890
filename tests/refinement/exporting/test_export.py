"""A model as one graph: it gives what a `Refiner` gives, or isn't kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_bbox import (
    AlexNet,
    BadInput,
    BoxRegressor,
    CropGeometry,
    DisplacementLaw,
    LikelihoodHead,
    LinearHead,
    OffsetSpec,
    Refiner,
    ShallowConvNet,
    SoftArgmaxHead,
)
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.geometry.trained_range import TrainedRange
from lightning_bbox.refinement.exported import ExportedGraph
from lightning_bbox.refinement.exporting import export as exporting_room
from lightning_bbox.refinement.exporting.export import REPORT, export
from lightning_bbox.refinement.exporting.graph import RefinementGraph
from lightning_bbox.refinement.exporting.parity import Case, compare, odd_cases
from lightning_bbox.refinement.outcomes import Reason
from tests.refinement.test_refiner import built_model

CLASSES = ("cell", "platelet")
LAW = DisplacementLaw(0.1, (0.6, 0.3), ((0.05, 0, 0.1, 0), (0.0,) * 4), ((0.1,) * 4, (0.03,) * 4))
LIMIT = 0.175  # of the range: some boxes of some cases lie beyond it
OTHER = DisplacementLaw(0.5, (0.5,), ((-0.1, 0.1, 0, 0),), ((0.02,) * 4,))


def trained(num_targets=4, law=LAW, backbone=None, head=None, geometry=None, flips=False):
    """Make a model whose head says something of every crop, and which knows how it errs."""
    model = BoxRegressor(
        backbone or ShallowConvNet(channels=(4, 8), convs_per_scale=1, fc=(16,)),
        head,
        average_flips=flips,
    )
    geometry = geometry or CropGeometry(size=32)
    spec = OffsetSpec(geometry, num_targets, 5.0, 0.2 * (num_targets == 4), CLASSES)
    model.build(spec, 0)
    random = torch.Generator().manual_seed(0)
    proposals = torch.tensor([[10.0, 10, 40, 40]]).expand(200, 4)
    off = 3 * torch.randn(200, 4, generator=random)
    model.codec.fit(proposals + off, proposals)
    model.net.head.fit(model.codec.space())
    with torch.no_grad():
        for parameter in model.net.head.parameters():
            parameter.normal_(std=0.3, generator=random)
    if law is not None:
        law = replace(
            law,
            means=tuple(row[:num_targets] for row in law.means),
            stds=tuple(row[:num_targets] for row in law.stds),
        )
        parts = [(number,) * num_targets for number in (0.01, 0.9, 0.1)]
        tails, common = ((0.9, 1.0), (0.1, 4.0)), (0.3,) * num_targets
        model.law, model.reliability = law, Reliability(*parts, tails, common)
    model.range = TrainedRange((1.0, 1.0), LIMIT)
    return model.eval()


def two_looks():
    model = trained()
    model.second = trained(law=None, geometry=CropGeometry(size=24, context=1.2))
    return model


MODELS = {
    "bins": trained,
    "two targets": lambda: trained(2),
    "no law": lambda: trained(law=None),
    "flips": lambda: trained(flips=True),
    "likelihood": lambda: trained(head=LikelihoodHead()),
    "soft-argmax": lambda: trained(
        2, backbone=ShallowConvNet(channels=(4, 8), convs_per_scale=1, fc=()), head=SoftArgmaxHead()
    ),
    "per class": lambda: trained(head=LinearHead(per_class=True), law=None),
    "AlexNet": lambda: trained(2, None, AlexNet("pool2"), LinearHead(), CropGeometry(63)),
    "squares": lambda: trained(geometry=CropGeometry(size=24, square=True)),
    "two looks": two_looks,
}


def some_cases(largest=200):
    """Yield small odd cases, with and without invalid boxes."""
    for case in odd_cases(CLASSES):
        if case.picture.shape[0] * case.picture.shape[1] <= 480 * 640:
            yield case._replace(boxes=case.boxes[:largest], labels=case.labels[:largest])


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    """A model, and the same in ONNX with its report."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = trained()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    report = export(model, path, licence="CC0-1.0", cases={"small": some_cases()})
    return model, path, report


def assert_alike(refiner, exported, cases):
    for case in cases:
        assert compare(case, refiner, exported).is_equal


class InGraph(Refiner):
    """A refiner that runs the graph untraced."""

    def __init__(self, model, max_shift=None):
        super().__init__(model, max_shift=max_shift)
        graph = RefinementGraph(model, self.law, max_shift)
        self._graph = ExportedGraph.__new__(ExportedGraph)
        self._graph.facts = exporting_room.facts_of(graph, "pt2", "")

        def run(taken):
            with torch.no_grad():
                found = graph(**{name: torch.tensor(each) for name, each in taken.items()})
            return [each.numpy() for each in found]

        self._graph._run = run


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_of_every_kind_of_model_gives_what_a_refiner_gives(name):
    model = MODELS[name]()
    assert_alike(Refiner(model), InGraph(model), some_cases(largest=30))


def assert_marks_alike(refiner, exported):
    case = next(each for each in some_cases() if len(each.boxes) > 100)
    ours, theirs = (each.refine_with_std(case.picture, case.boxes) for each in (refiner, exported))
    assert torch.equal(ours.beyond, theirs.beyond)
    assert 0 < float(ours.beyond.double().mean()) < 1
    assert torch.equal(theirs.stds[ours.beyond].isnan().any(dim=1), ours.beyond[ours.beyond])


def test_the_graph_marks_boxes_beyond_the_trained_range():
    model = trained()
    assert_marks_alike(Refiner(model), InGraph(model))
    assert_marks_alike(Refiner(model, max_shift=0.01), InGraph(model, max_shift=0.01))
    model.range = None
    case = next(each for each in some_cases() if len(each.boxes) > 100)
    assert not bool(InGraph(model).refine_with_std(case.picture, case.boxes).beyond.any())


def test_most_boxes_of_these_tests_move():
    case = next(each for each in some_cases() if len(each.boxes) > 100)
    found = Refiner(trained()).refine(case.picture, case.boxes)
    assert (found != case.boxes).any(dim=1).double().mean() > 0.5


def test_onnx_gives_what_a_refiner_gives_on_any_picture_and_number_of_boxes(onnx_model):
    model, path, report = onnx_model
    assert report["parity"]["small"]["largest_px"] <= 1e-3
    assert report["parity"]["small"]["boxes"] > 200
    assert json.loads(path.with_name(path.name + REPORT).read_text())["px"] == report["px"]
    assert_alike(Refiner(model), Refiner(path), some_cases(largest=20))
    assert_marks_alike(Refiner(model), Refiner(path))


def test_onnx_takes_another_law(onnx_model):
    model, path, _ = onnx_model
    ours, theirs = (Refiner(each, law=OTHER) for each in (model, path))
    assert_alike(ours, theirs, some_cases(largest=50))
    own = Refiner(path)
    case = next(each for each in some_cases() if len(each.boxes) > 100)
    changed = [each.refine(case.picture, case.boxes) for each in (own, theirs)]
    assert not torch.equal(*changed)


def test_onnx_says_what_it_is_and_has_no_need_of_grid_sample(onnx_model):
    onnx = pytest.importorskip("onnx")
    _, path, _ = onnx_model
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert "GridSample" not in {node.op_type for node in model.graph.node}
    told = {each.key: each.value for each in model.metadata_props}
    assert json.loads(told["classes"]) == list(CLASSES)
    assert (told["px"], told["licence"]) == ("1/45 of the crop's side", "CC0-1.0")
    assert json.loads(told["reasons"])["3"] == "outside"
    dims = [
        each.dim_param or each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim
    ]
    assert dims == ["height", "width", 3]


def test_boxes_that_stay_say_why(onnx_model):
    _, path, _ = onnx_model
    graph = ExportedGraph(path)
    boxes = torch.tensor(
        [[5, 5, 25, 25], [torch.nan, 0, 9, 9], [5, 5, 5, 9], [90, 90, 99, 99]], dtype=torch.float32
    )
    picture = np.zeros((60, 60, 3), np.uint8)
    found = graph(picture, boxes)
    expected = [Reason.MOVED, Reason.NOT_FINITE, Reason.FLAT, Reason.OUTSIDE]
    assert found.reason.tolist() == expected
    assert torch.equal(found.boxes[2:], boxes[2:])
    assert found.stds[1:].isnan().all()
    with pytest.warns(UserWarning, match="3 of 4 boxes stay as they were"):
        Refiner(path).refine(picture, boxes)


def test_what_was_settled_at_the_export_cannot_be_something_else(onnx_model):
    _, path, _ = onnx_model
    for options, told in (
        ({"device": "cuda"}, "runs on the CPU"),
        ({"max_shift": 2.0}, "export it with --max_shift 2"),
        ({"law": "trained"}, "export it with --law trained"),
    ):
        with pytest.raises(BadInput, match=told):
            Refiner(path, **options)
    with pytest.raises(BadInput, match="has its law inside"):
        Refiner(path).fit_law([], [])
    long = DisplacementLaw(0.2, (0.2,) * 4, ((0.0,) * 4,) * 4, ((0.1,) * 4,) * 4)
    with pytest.raises(BadInput, match="takes laws of 3 parts"):
        Refiner(path, law=long).refine(np.zeros((9, 9, 3), np.uint8), np.array([[1.0, 1, 8, 8]]))


def test_a_model_that_gives_other_boxes_is_not_kept(tmp_path, monkeypatch):
    def damaged(graph, facts, path):
        with torch.no_grad():
            graph.model.codec.shift += 0.01
        real(graph, facts, path)
        with torch.no_grad():
            graph.model.codec.shift -= 0.01

    real = exporting_room.write_graph
    monkeypatch.setattr(exporting_room, "write_graph", damaged)
    with pytest.raises(
        BadInput, match=r"get other boxes than from the checkpoint.*nothing was kept"
    ):
        export(trained(), tmp_path / "model.pt2", "pt2", cases={"small": some_cases(20)})
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_torch_gives_what_a_refiner_gives(tmp_path):
    model, path = trained(head=LinearHead(per_class=True), law=None), tmp_path / "model.pt2"
    export(model, path, "pt2", max_shift=4.0, cases={"small": some_cases(20)})
    assert_alike(Refiner(model, max_shift=4.0), Refiner(path), some_cases(40))
    with pytest.raises(BadInput, match="is there already"):
        export(model, path, "pt2")


def test_files_that_are_no_exported_models_are_refused(tmp_path):
    for name in ("model.onnx", "model.pt2"):
        if name.endswith("onnx"):
            pytest.importorskip("onnxruntime")
        path = tmp_path / name
        with pytest.raises(BadInput, match="no such exported model"):
            Refiner(path)
        path.write_bytes(b"none")
        with pytest.raises(BadInput, match=r"ONNX Runtime can't load it|isn't an exported model"):
            Refiner(path)
    with pytest.raises(BadInput, match=r"is a \.onnx file; name one"):
        export(trained(), tmp_path / "other.pt2", "onnx")


def test_what_draws_at_random_is_refused():
    model = built_model()
    model.passes = 5
    with pytest.raises(BadInput, match="passes that draw at random"):
        RefinementGraph(model, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "bins"])
def test_every_kind_of_model_is_the_same_in_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    report = export(MODELS[name](), path, cases={"small": some_cases(50)})
    assert report["parity"]["small"]["boxes"] > 50


def test_the_difference_of_a_case_is_in_px():
    class Shifted(Refiner):
        def refine_with_std(self, *args):
            found = super().refine_with_std(*args)
            return found._replace(boxes=found.boxes + 0.5)

    model = trained(2, None)
    picture = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    case = Case("one", picture, torch.tensor([[50.0, 50, 110, 110]]), [""])
    found = compare(case, Refiner(model), Shifted(model))
    assert found.largest == pytest.approx(0.25, abs=1e-5)  # a px is 60 / 30 pixels
    assert not found.is_equal
