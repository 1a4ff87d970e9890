"""Models that know classes: drawn more often, weighed in the loss, with outputs of their own."""

import numpy as np
import pytest
import torch

from lightning_bbox import (
    BadInput,
    BinHead,
    BoxDataModule,
    BoxRegressor,
    CumulativeLink,
    FlowLikelihood,
    LikelihoodHead,
    Refiner,
    SceneDataModule,
    TreeLink,
)
from lightning_bbox.cli.main import main
from lightning_bbox.refinement.exporting.export import export
from tests.annotation_files import csv_of, write
from tests.refinement.test_refiner import built_model, picture
from tests.runs import TINY, interfered, resume, same, weights

CLASSES = ("big", "mid", "rare")
COUNTS = (24, 12, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write forty pictures of noise with a box each, of three classes."""
    folder = tmp_path_factory.mktemp("classes")
    labels = [name for name, count in zip(CLASSES, COUNTS, strict=True) for _ in range(count)]
    rows = [
        f"p{n}.png,{5 + n % 9},6,{30 + n % 5},{29 + n % 7},{one}" for n, one in enumerate(labels)
    ]
    # Every fourth picture of a class validates, and every other fourth tests.
    splits = [("train", "train", "val", "test")[n % 4] for n in range(40)]
    rows = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    header = "image,xmin,ymin,xmax,ymax,label,split"
    write(folder, {"boxes.csv": csv_of(*rows, header=header)})
    write(folder, {f"p{n}.png": (64, 48) for n in range(40)})
    return folder


def data_of(root, **options):
    sizes = {"draws_per_epoch": 60, "eval_draws": 40, "batch_size": 10, "compile": False}
    return BoxDataModule(str(root), **sizes | options)


def names_of(data, split="train", epoch=0):
    return [CLASSES[label] for label in data.samples(split, epoch).labels.tolist()]


def counts_of(names):
    return tuple(names.count(name) for name in CLASSES)


@pytest.mark.parametrize(
    ("asked", "counts"),
    [  # 12, 6 and 2 boxes train; 60 draws
        (None, (36, 18, 6)),
        ("balanced", (20, 20, 20)),
        ({"rare": 5.0}, (26, 13, 21)),  # 12 : 6 : 10 of 28, so 25.7, 12.9, 21.4
        ({"big": 0.5, "rare": 9}, (12, 12, 36)),
    ],
)
def test_an_epoch_draws_each_class_as_often_as_asked(root, asked, counts):
    data = data_of(root, class_sampling=asked)
    for epoch in range(3):
        assert counts_of(names_of(data, epoch=epoch)) == counts


def test_how_classes_are_drawn_is_keyed_and_leaves_evaluations_alone(root):
    one, other = data_of(root, class_sampling="balanced"), data_of(root, class_sampling="balanced")
    assert same(one.samples("train", 3)._asdict(), other.samples("train", 3)._asdict())
    assert not same(one.samples("train", 3)._asdict(), one.samples("train", 4)._asdict())
    seeded = data_of(root, class_sampling="balanced", seed=1)
    assert not same(one.samples("train", 3)._asdict(), seeded.samples("train", 3)._asdict())
    plain = data_of(root)
    for split in ("val", "test", "train_eval"):
        assert same(one.samples(split)._asdict(), plain.samples(split)._asdict())


def test_over_epochs_every_box_of_a_class_is_used_evenly(root):
    data = data_of(root, class_sampling={"rare": 3, "mid": 0.7})
    items = torch.cat([data.samples("train", epoch).items for epoch in range(7)])
    labels = data.source.splits["train"].labels
    for number in range(3):
        own = items[labels[items] == number].bincount(minlength=len(labels))[labels == number]
        assert int(own.max() - own.min()) <= 1


def test_how_classes_are_drawn_is_told(root):
    train = next(
        line for line in data_of(root, class_sampling="balanced").describe() if "train:" in line
    )
    assert "draws by class: big 20, mid 20, rare 20" in train
    assert "draws by class" not in "".join(data_of(root).describe())


WRONG = {
    "unknown": (
        {"rear": 2},
        r"no training box is of class 'rear'; choose from big \(12\), mid \(6\), rare \(2\)",
    ),
    "zero": ({"rare": 0}, "of rare is 0; give more than 0"),
    "negative": ({"rare": -1.0}, "of rare is -1"),
    "infinite": ({"rare": float("inf")}, "of rare is inf"),
    "no number": ({"rare": float("nan")}, "of rare is nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_make_no_sense_are_refused(root, name):
    asked, sentence = WRONG[name]
    with pytest.raises(BadInput, match=f"data.class_sampling.*{sentence}"):
        data_of(root, class_sampling=asked).samples("train")


def test_a_class_that_would_never_be_drawn_is_refused(root):
    with pytest.raises(BadInput, match="draws no rare in an epoch of 60; raise its weight"):
        data_of(root, class_sampling={"rare": 1e-4}).samples("train")


def test_data_of_one_class_have_none_to_weigh(root):
    scenes = SceneDataModule(num_scenes=20, class_sampling="balanced", compile=False)
    with pytest.raises(
        BadInput, match=r"'balanced', but all boxes are object \(20\); leave it out"
    ):
        scenes.samples("train")
    with pytest.raises(BadInput, match=r"all boxes are rare \(2\)"):
        data_of(root, classes=["rare"], class_sampling={"rare": 2}).samples("train")


def options_of(root, runs, name, *more):
    options = ["fit", "--model=BoxRegressor", "--data=BoxDataModule", *TINY]
    options += [f"--data.root={root}", f"--runs={runs}", f"--name={name}"]
    return [*options, "--model.head=BinHead", *more]


def trained(root, runs, name, *more):
    assert main(options_of(root, runs, name, *more)) == 0
    return runs / name


@pytest.mark.parametrize("where", ["model.class_weights", "data.class_sampling"])
def test_weights_of_one_class_are_refused_by_a_run(root, tmp_path, capsys, where):
    options = options_of(root, tmp_path, "a", "--data.classes=[big]", f"--{where}=balanced")
    assert main(options) == 2
    assert (
        f"{where} is 'balanced', but all boxes are big (12); leave it out"
        in capsys.readouterr().err
    )


class Losses:
    """Take the losses of a model whose loss is the label plus one."""

    def __init__(self, weights):
        self.model = BoxRegressor(class_weights=weights)

    def of(self, data):
        self.model._trainer = type("Stub", (), {"datamodule": data})()
        return self.model._weigh_classes()


@pytest.mark.parametrize("sampling", [None, "balanced"])
@pytest.mark.parametrize("asked", ["balanced", {"rare": 4.0}])
def test_weights_are_1_on_average_over_the_training_draws(root, asked, sampling):
    data = data_of(root, class_sampling=sampling)
    found = Losses(asked).of(data).double().numpy()
    labels = data.samples("train").labels.numpy()
    own = 1 / np.array([12, 6, 2]) if asked == "balanced" else np.array([1.0, 1.0, 4.0])
    expected = own / own[labels].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[labels].mean() == pytest.approx(1, abs=1e-6)


def test_a_weight_of_a_class_is_as_many_copies_of_its_losses(root, tmp_path):
    """Two weights that differ by a factor alone give the same training, to the bit."""
    runs = [
        trained(root, tmp_path, name, f"--model.class_weights={{{said}}}")
        for name, said in (("a", "big: 2, mid: 2, rare: 8"), ("b", "rare: 4"))
    ]
    plain = trained(root, tmp_path, "plain")
    alike = trained(root, tmp_path, "alike", "--model.class_weights={big: 3, mid: 3, rare: 3}")
    assert same(weights(runs[0]), weights(runs[1]))
    assert same(weights(plain), weights(alike))
    assert not same(weights(plain), weights(runs[0]))


def test_a_run_goes_on_with_its_weights_alone(root, tmp_path, capsys):
    whole = ["--data.class_sampling=balanced", "--model.class_weights={rare: 2}"]
    once = trained(root, tmp_path, "once", *whole)
    for name in ("cut", "other"):
        options = options_of(root, tmp_path, name, *whole, *interfered("training", 6, 2))
        assert main(options) == 130
    assert resume(tmp_path / "cut") == 0
    assert same(weights(once), weights(tmp_path / "cut"))
    capsys.readouterr()
    assert resume(tmp_path / "other", "--model.class_weights={rare: 3}") == 2
    assert "model.class_weights is {'rare': 2.0} in the checkpoint" in capsys.readouterr().err
    assert resume(tmp_path / "other", "--data.class_sampling=null") == 2
    assert "data.class_sampling is balanced in the checkpoint" in capsys.readouterr().err


HEADS = {
    "bins": lambda: BinHead(per_class=True),
    "a tree of bins": lambda: BinHead(link=TreeLink(3), per_class=True, grids=2),
    "ordered bins": lambda: BinHead(link=CumulativeLink(), per_class=True),
    "a Gaussian": lambda: LikelihoodHead(per_class=True),
    "a flow": lambda: LikelihoodHead(FlowLikelihood(), per_class=True),
}


@pytest.mark.parametrize("name", HEADS)
def test_each_class_has_outputs_of_its_own(name, spec_of_three):
    head = HEADS[name]().build(16, spec_of_three)
    torch.manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features, labels = torch.randn(9, 16), torch.arange(9) % 3
    chosen = head.select(head(features), labels)
    decoded, stds = head.decode(chosen), head.stds(chosen)
    assert decoded.shape == stds.shape == (9, 2)
    for row, label in enumerate(labels.tolist()):  # each alone, by a loop
        alone = head.select(head(features[row : row + 1]), torch.tensor([label]))
        torch.testing.assert_close(head.decode(alone)[0], decoded[row], rtol=1e-4, atol=1e-5)
    others = head.decode(head.select(head(features), (labels + 1) % 3))
    assert not torch.isclose(others, decoded).all(dim=1).any()
    targets = torch.randn(9, 2)
    loss = head.loss(chosen[:1], targets[:1])
    loss.sum().backward()
    touched = [p.grad is not None and bool(p.grad.any()) for p in head.parameters()]
    assert any(touched)


def test_a_class_of_its_own_learns_nothing_of_others(spec_of_three):
    head = BinHead(per_class=True).build(16, spec_of_three)
    features = torch.randn(6, 16, generator=torch.manual_seed(0))
    chosen = head.select(head(features), torch.ones(6, dtype=torch.int64))
    head.loss(chosen, torch.zeros(6, 2)).sum().backward()
    layers = [head.link, *head.other_links]
    assert [bool(layer.linear.weight.grad.any()) for layer in layers] == [False, True, False]


@pytest.fixture
def spec_of_three():
    model = built_model()
    return type(model.spec)(**vars(model.spec) | {"classes": CLASSES})


@pytest.mark.parametrize("head", ["BinHead", "LikelihoodHead"])
def test_a_run_with_outputs_for_each_class_is_trained_applied_and_shared(root, tmp_path, head):
    run = trained(root, tmp_path, "run", f"--model.head={head}", "--model.head.per_class=true")
    refiner, image = Refiner(run), picture(48, 64)
    boxes = np.array([[5.0, 6, 30, 29]] * 3)
    found = refiner.refine(image, boxes, list(CLASSES))
    assert len({tuple(box) for box in found.tolist()}) == 3
    with pytest.raises(BadInput, match="give each box's label"):
        refiner.refine(image, boxes)
    refiner.save_pretrained(tmp_path / "shared")
    again = Refiner.from_pretrained(tmp_path / "shared")
    assert again.refine(image, boxes, list(CLASSES)).tobytes() == found.tobytes()
    assert main(["card", str(run)]) == 0
    assert "refiner.refine(image, rough_boxes, labels)" in (run / "card.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["bins", "a Gaussian"])
def test_outputs_for_each_class_are_exported_with_them(head, spec_of_three, tmp_path):
    model = built_model(head=HEADS[head]())
    model.build(spec_of_three, seed=0)
    report = export(model, tmp_path / "model.pt2", "pt2")  # which refuses what isn't equal
    assert report["per_class"]
    assert report["parity"]["odd cases"]["boxes"] > 500
