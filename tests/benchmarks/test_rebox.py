"""What the benchmarks of refined and of audited boxes start from, and how they count."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import audit, rebox
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.geometry.boxes import box_sizes, paired_iou


@pytest.fixture
def table(tmp_path):
    lines = ["image,xmin,ymin,xmax,ymax"]
    for number in range(10):
        Image.new("L", (100, 80)).save(tmp_path / f"{number}.png")
        lines += [f"{number}.png,{8 * at},{6 * at},{8 * at + 30},{6 * at + 24}" for at in range(8)]
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    return read_annotations(tmp_path)


def test_sides_are_off_by_as_much_as_asked_and_within_the_picture(table):
    limits = table.sizes[table.image_index].flip(-1)
    generator = torch.Generator().manual_seed(0)
    boxes = audit.off_by(table.boxes, limits, 0.15, 0.3, generator)
    off = (boxes - table.boxes).abs() / box_sizes(table.boxes).repeat(1, 2)
    assert off.min() > 0.15 - 1e-5
    assert off.max() < 0.3 + 1e-5
    assert bool((boxes >= 0).all())
    assert bool((boxes[:, 2:] <= limits).all())


def test_boxes_of_a_scale_overlap_by_its_square_where_no_border_cuts_them(table):
    cases = {case.name: case.boxes for case in rebox.scaled(table, rebox.SCALES)}
    assert torch.equal(cases["exact"], table.boxes)
    for scale in (0.6, 0.9):
        found = paired_iou(cases[f"all x {scale}"], table.boxes)
        torch.testing.assert_close(found, torch.full_like(found, scale**2))
    assert bool((cases["all x 1.4"] >= 0).all())


def test_a_mixture_is_off_in_its_share_alone(table):
    for case in rebox.mixtures(table, 2):
        off = (case.boxes - table.boxes).abs() / box_sizes(table.boxes).repeat(1, 2)
        assert off[~case.bad].max() <= rebox.NEARLY + 1e-5
        assert not case.bad.any() or off[case.bad].min() > rebox.NEAR - 1e-5
        assert float(case.name.partition(" ")[0]) == pytest.approx(
            100 * float(case.bad.double().mean()), abs=1
        )


def test_half_of_the_boxes_are_too_small_as_two_classes_and_as_one(table):
    two, one = rebox.two_kinds(table)
    assert torch.equal(two.boxes, one.boxes)
    small = torch.tensor([kind == "small" for kind in two.kinds])
    assert 20 < int(small.sum()) < 60
    assert torch.equal(two.boxes[~small], table.boxes[~small])
    found = paired_iou(two.boxes, table.boxes)[small]
    torch.testing.assert_close(found, torch.full_like(found, 0.81))
    assert set(one.kinds) == {"any"}


def test_tables_tell_what_was_kept(table, tmp_path):
    run = tmp_path / "bccd-all-0.7-0"
    run.mkdir()

    class Perfect:
        def __init__(self, *_):
            pass

        def trained(self, boxes):
            return table.boxes, torch.ones(len(boxes), 4)

        def said(self, boxes, found, stds):
            return None

        def held(self, case, audit, said):
            return np.full(len(case.boxes), 0.75)

        def by_few(self, boxes, said, few, repetitions):
            return np.full(len(boxes), 0.9 if few else 0.8)

        def audit(self, case, found, stds):
            wrong = (paired_iou(case.boxes, found) < 0.9).float()
            share = audit_of_share(wrong)
            return rebox.Audit(None, found, wrong, wrong, wrong, share)

    audit_of_share = lambda wrong: rebox.Mean(float(wrong.mean()), 0.0, 1.0, 10)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebox, "Judge", Perfect)
        rebox.measure(run, table, repetitions=1)
    found = rebox.collect(tmp_path)["bccd, all pictures, log_scale 0.7"]
    case = found["cases"]["all x 0.8"]
    assert (case["before"], case["law"]) == (pytest.approx(0.64), pytest.approx(1.0))
    assert (case["gain"]["value"], case["harmed"]) == (pytest.approx(0.36), 0)
    assert found["mixtures"]["20 %"]["bad law"] == pytest.approx(1.0)
    text = rebox.as_markdown({"bccd, all pictures, log_scale 0.7": found})
    assert "| all x 0.8 | 0.640 | 1.000 | 1.000 | +0.360 (" in text
    assert text.count("| 0 % | 75 % | 0.895 | 0.708 |") == 1
    few = "+0.160 (+0.160 to +0.160) | +0.260 (+0.260 to +0.260) | +0.360 (+0.360 to +0.360) |"
    assert f"| all x 0.8 | {few}" in text


def test_an_audit_of_one_set_leaves_the_figures_of_the_others(tmp_path, monkeypatch, capsys):
    def measured(name, seed, options):
        share = {"value": options.share, "low": 0.0, "high": 1.0}
        found = {"boxes": 100, "planted": 5, "precision at k": 0.8, "share": share}
        ious = {f"iou of the others {when}": 1.0 for when in ("before", "after")}
        return found | ious | {"data": name, "seed": seed}

    monkeypatch.setattr(audit, "measure", measured)
    monkeypatch.setattr(audit, "RESULTS", tmp_path)
    for command in (["--only", "rbc", "bccd"], ["--only", "bccd", "--share=0.1"], ["--only=bccd"]):
        audit.main(["--data=.", *command])
    rows = (tmp_path / "audit.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| bccd", "| bccd", "| rbc"]
    assert ["0.050 (" in row for row in rows] == [True, False, True]
    assert capsys.readouterr().out.endswith("\n".join([*rows, "", ""]))
