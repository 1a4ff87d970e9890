"""Classes that are off in ways of their own have laws of their own; others don't."""

import json

import numpy as np
import pytest
import torch

from lightning_bbox import BadInput, DisplacementLaw
from lightning_bbox.geometry import class_laws, weighing
from lightning_bbox.geometry.class_laws import ClassLaws, learn_laws
from lightning_bbox.geometry.law_fitting import fit_law
from lightning_bbox.geometry.weighing import Said

NOISE = 0.05
LIMITS = torch.tensor([[1000.0, 1000.0]]).repeat(600, 1)


def said_of_classes(offsets, seed, together=0.0):
    """Return names, clusters and what a model says of boxes that are off by a class's own mean.

    `together` is how much of an error all boxes of a picture have in common.
    """
    random = np.random.default_rng(seed)
    names = random.choice(list(offsets), 600).tolist()
    clusters = np.arange(600) // 12
    own, common = random.normal(size=(600, 4)), random.normal(size=(50, 4))[clusters]
    noise = NOISE * (np.sqrt(1 - together) * own + np.sqrt(together) * common)
    means = np.array([offsets[name] for name in names])
    said = torch.from_numpy(means + noise).float()
    return names, torch.from_numpy(clusters), Said(said, torch.full((600, 4), NOISE), ((1.0, 1.0),))


def learned(names, clusters, said):
    rough = torch.tensor([[100.0, 100.0, 140.0, 140.0]]).repeat(600, 1)
    return learn_laws(said, rough, LIMITS, clusters, names)


def test_classes_that_are_off_in_other_ways_have_laws_of_their_own():
    means = {"cell": (0, 0, 0.1, 0.1), "dust": (0, 0, 0, 0), "speck": (0, 0, 0, 0)}
    names, clusters, said = said_of_classes(means, 0)
    laws = learned(names, clusters, said)
    assert set(laws.by_class) == set(means)
    torch.testing.assert_close(
        torch.tensor(laws.by_class["cell"].means[0]),
        torch.tensor([0, 0, 0.1, 0.1]),
        atol=0.02,
        rtol=0,
    )
    moved = laws.move(said, names).offsets
    for name, mean in means.items():
        rows = torch.tensor([its == name for its in names])
        off = (moved[rows] - torch.tensor(mean)).abs().amax(dim=1)
        assert float((off < 0.03).double().mean()) > 0.95
    pooled = laws.every.move(*said).offsets
    dust = torch.tensor([name != "cell" for name in names])
    assert float((moved[dust] == 0).all(dim=1).double().mean()) == 1
    assert float((pooled[dust] == 0).all(dim=1).double().mean()) < 0.99


@pytest.mark.parametrize("together", [0.0, 0.8])
def test_classes_that_are_off_alike_have_one_law(together):
    means = dict.fromkeys(("cell", "dust"), (0.05, 0, 0.1, 0.1))
    for seed in range(5):
        names, clusters, said = said_of_classes(means, seed, together)
        assert learned(names, clusters, said).by_class == {}


def test_a_class_of_few_boxes_goes_with_the_others():
    means = {"cell": (0, 0, 0.1, 0.1), "dust": (0, 0, 0, 0)}
    names, clusters, said = said_of_classes(means, 1)
    names = [f"cell {at}" if name == "cell" else name for at, name in enumerate(names)]
    laws = learned(names, clusters, said)
    assert laws.by_class["dust"].right == pytest.approx(1, abs=0.02)
    rest = laws.by_class[next(name for name in names if name != "dust")]
    assert {id(law) for name, law in laws.by_class.items() if name != "dust"} == {id(rest)}
    assert rest.means[0][2] == pytest.approx(0.1, abs=0.02)


def test_each_box_moves_and_counts_as_wrong_by_the_law_of_its_class():
    none = ((0.0,) * 4,)
    every = DisplacementLaw(1.0, (0.0,), none, none)
    cells = DisplacementLaw(0.0, (1.0,), ((0.2, 0.0, 0.0, 0.0),), ((0.01,) * 4,))
    laws, names = ClassLaws(every, {"cell": cells}), ["dust", "cell", "dust", "cell"]
    said = Said(torch.full((4, 4), 0.05), torch.full((4, 4), NOISE), ((1.0, 1.0),))
    moved, short = laws.move(said, names), laws.short_of(0.9, said, names)
    for law, rows in ((every, [0, 2]), (cells, [1, 3])):
        part = said.offsets[rows], said.stds[rows]
        for mine, its in zip(moved, law.move(*part), strict=True):
            assert torch.equal(mine[rows], its)
        assert torch.equal(short[rows], law.short_of(0.9, *part))
    assert laws.words().startswith("cell: 100 % of the boxes are 20 % too far left")
    assert ClassLaws(every).words() == every.words()


def test_laws_are_kept_and_the_law_of_all_can_be_read_alone(tmp_path):
    names, clusters, said = said_of_classes({"a": (0.1, 0, 0, 0), "b": (-0.1, 0, 0, 0)}, 2)
    laws, path = learned(names, clusters, said), tmp_path / "law.json"
    assert set(laws.by_class) == {"a", "b"}
    laws.save(path)
    assert ClassLaws.load(path) == laws
    assert DisplacementLaw.load(path) == laws.every
    told = json.loads(path.read_text())
    for by_class, problem in (
        ([1], "by_class holds no laws"),
        ({"a": {"right": 1}}, "by_class holds no laws"),
        ({"a": DisplacementLaw(1.0, (0.0,), ((0.0, 0.0),), ((1.0, 1.0),)).plain()}, "other than 4"),
    ):
        path.write_text(json.dumps(told | {"by_class": by_class}))
        with pytest.raises(BadInput, match=problem):
            ClassLaws.load(path)


def test_of_more_boxes_than_needed_a_sample_tells_the_laws(monkeypatch):
    means = {"cell": (0, 0, 0.1, 0.1), "dust": (0, 0, 0, 0)}
    names, clusters, said = said_of_classes(means, 3)
    monkeypatch.setattr(weighing, "MOST_LEARNED_FROM", 300)
    monkeypatch.setattr(class_laws, "MOST_LEARNED_FROM", 300)
    some = weighing.a_sample(600)
    assert len(set(some.tolist())) == 300
    laws = learned(names, clusters, said)
    assert set(laws.by_class) == set(means)
    part = said.take(some)
    assert laws.every == fit_law(part.offsets, part.stds, len(set(clusters[some].tolist())))


@pytest.mark.parametrize("few", [8, 20, 49])
def test_a_few_right_boxes_of_a_class_stay_beside_many_that_are_off(few):
    random = np.random.default_rng(few)
    off = torch.zeros(600, 4)
    off[few:, 0] = 0.1
    noise = torch.from_numpy(random.normal(scale=NOISE, size=(600, 4))).float()
    said = Said(off + noise, torch.full((600, 4), NOISE), ((1.0, 1.0),))
    names = ["dust"] * few + ["cell"] * (600 - few)
    laws = learned(names, torch.arange(600) // 5, said)
    moved = laws.move(said, names).offsets
    assert float((moved[:few] == 0).all(dim=1).double().mean()) > 0.9
    assert moved[few:, 0].mean() == pytest.approx(0.1, abs=0.01)
    assert set(laws.by_class) == {"dust", "cell"}
    alike = said._replace(offsets=torch.tensor([0.1, 0, 0, 0]) + noise)
    assert learned(names, torch.arange(600) // 5, alike).by_class == {}
