"""Proposals find the true boxes that they mean, and what finds no partner is told."""

import math

import numpy as np
import pytest

from lightning_bbox import BadInput, Matching, read_annotations
from lightning_bbox.annotations.proposals.matching import (
    match_proposals,
    sentence_of,
    unmatched,
)
from lightning_bbox.annotations.proposals.reading import read_proposals
from tests.annotation_files import (
    coco,
    csv_of,
    write,
    write_coco,
    write_csv,
    write_voc,
    write_yolo,
)
from tests.reference import iou

HEADER = "image,xmin,ymin,xmax,ymax,label,score"
PICTURES = {f"{name}.png": (64, 48) for name in "ab"}


def table_of(root, *rows, header=HEADER):
    write(root, PICTURES | {"boxes.csv": csv_of(*rows, header=header)})
    return read_annotations(root)


def random_rows(seed, count, scores=True):
    random = np.random.default_rng(seed)
    for n in range(count):
        x, y = random.uniform(0, 20, 2).round(3)
        w, h = random.uniform(8, 20, 2).round(3)
        where = f"{'ab'[n % 2]}.png,{x},{y},{x + w:.3f},{y + h:.3f},{('cell', 'dust')[n % 3 == 0]}"
        yield f"{where},{random.uniform(0, 1) if scores else ''}"


def by_loops(truth, proposals, least, several):
    """Match by plain loops over the proposals, the highest scores first."""
    taken, pairs = set(), set()
    for at in sorted(range(len(proposals.boxes)), key=lambda n: -float(proposals.scores[n])):
        best, overlap = None, least
        for n in range(len(truth.boxes)):
            alike = all(names(truth, n) == names(proposals, at) for names in (picture_of, class_of))
            if alike and (several or n not in taken):
                own = iou(truth.boxes[n].numpy(), proposals.boxes[at].numpy())
                if own >= overlap:
                    best, overlap = n, own
        if best is not None:
            taken.add(best)
            pairs.add((best, at))
    return pairs


def picture_of(table, box):
    return table.images[table.image_index[box]]


def class_of(table, box):
    return table.classes[table.labels[box]]


def pairs_of(truth, proposals, **matching):
    found = match_proposals(truth, proposals, Matching(**matching))
    return list(zip(found.truths.tolist(), found.proposals.tolist(), strict=True))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("least", [0.05, 0.3])
def test_pairs_are_those_of_plain_loops(several, least, tmp_path):
    truth = table_of(tmp_path / "truth", *random_rows(0, 40))
    proposals = table_of(tmp_path / "rough", *reversed([*random_rows(1, 60)]))
    found = pairs_of(truth, proposals, min_iou=least, several=several)
    assert set(found) == by_loops(truth, proposals, least, several)
    assert found == sorted(found)
    assert len(found) > 10
    truths = [pair[0] for pair in found]
    assert (len(set(truths)) < len(truths)) == several


def test_the_higher_score_chooses_first_and_without_scores_the_nearer(tmp_path):
    truth = table_of(tmp_path / "truth", "a.png,0,0,20,20,cell,")
    far, near = "a.png,4,0,24,20,cell,{}", "a.png,1,0,21,20,cell,{}"
    for scores, chosen in ((("0.9", "0.2"), 0), (("0.2", "0.9"), 1), (("", ""), 1), (("", "0"), 1)):
        rows = (row.format(score) for row, score in zip((far, near), scores, strict=True))
        assert pairs_of(truth, table_of(tmp_path / "rough", *rows)) == [(0, chosen)]


def test_what_finds_no_partner_is_told_both_ways(tmp_path):
    rows = ("a.png,0,0,20,20,cell,", "b.png,0,0,20,20,cell,", "b.png,30,0,50,20,cell,")
    truth = table_of(tmp_path / "truth", *rows)
    others = ("a.png,1,0,21,20,dust,", "b.png,1,0,21,20,cell,", "b.png,0,1,20,21,cell,")
    proposals = table_of(tmp_path / "rough", *others, "b.png,9,9,9,20,cell,")
    pairs = match_proposals(truth, proposals, Matching())
    lone = unmatched(truth, proposals, pairs)
    assert lone == [
        ("a.png", "boxes.csv:2: the true box has no proposal in a.png; left out"),
        ("b.png", "boxes.csv:4: the true box has no proposal in b.png; left out"),
        ("a.png", "boxes.csv:2: the proposal has no true box in a.png; left out"),
        ("b.png", "boxes.csv:4: the proposal has no true box in b.png; left out"),
    ]
    sentence = sentence_of(truth, proposals, pairs, Matching())
    for part in (
        "1 are matched",
        "an IoU of 0.5",
        "2 aren't",
        "2 of 3 true boxes",
        "1 are invalid",
    ):
        assert part in sentence
    none = match_proposals(truth, proposals, Matching(1.0))
    with pytest.raises(BadInput, match=r"none of 3 proposals is matched .* 0.9 or more; lower"):
        sentence_of(truth, proposals, none, Matching(0.9))


@pytest.mark.parametrize("least", [0.0, -1, 1.5, math.nan])
def test_an_overlap_that_is_none_is_refused(least):
    with pytest.raises(BadInput, match=r"min_iou is .* choose one in \(0, 1\]"):
        Matching(least)


def write_rough(root, name):
    """Write the boxes of SCENE as proposals in a format, without pictures."""
    {"voc": write_voc, "coco": write_coco, "yolo": write_yolo, "csv": write_csv}[name](root)
    for path in root.rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize("name", ["voc", "coco", "yolo", "csv"])
def test_proposals_may_be_of_any_format(name, tmp_path):
    write_coco(tmp_path)
    truth = read_annotations(tmp_path)
    write_rough(tmp_path / "rough", name)
    place = {"coco": "/_annotations.coco.json", "csv": "/boxes.csv"}.get(name, "")
    found = read_proposals(reader(tmp_path), tmp_path, [f"rough{place}"])
    assert found.images[:2] == truth.images[:2]
    assert found.scores.isnan().all()
    assert [pair[0] for pair in pairs_of(truth, found, min_iou=0.9)] == [0, 1, 2]


def reader(root):
    """Return what reads the true boxes that `write_coco` wrote, or others of the same pictures."""

    def read(**options):
        named = {"annotations": ["_annotations.coco.json"], "images": "."}
        return read_annotations(root, **named | options)

    return read


def results(*rows):
    return [
        {"image_id": picture, "category_id": 5, "bbox": box, "score": score}
        for picture, box, score in rows
    ]


def test_a_list_of_results_is_read_with_the_files_of_the_true_boxes(tmp_path):
    write_coco(tmp_path)
    rows = results((1, [1, 2, 2, 2], 0.25), (0, [5, 6, 15, 24], 0.75))
    write(tmp_path, {"detected.json": rows})
    read = reader(tmp_path)
    truth = read()
    found = read_proposals(read, tmp_path, ["detected.json"])
    assert found.images == truth.images
    assert found.scores.tolist() == [0.75, 0.25]
    assert pairs_of(truth, found) == [(0, 0), (2, 1)]
    both = read_proposals(read, tmp_path, ["detected.json", "_annotations.coco.json"])
    assert both.ids == found.ids


def test_scores_are_read_and_stay_with_their_boxes(tmp_path):
    table = table_of(tmp_path, "b.png,1,1,9,9,cell,0.5", "a.png,1,1,8,8,cell,")
    assert table.pictures([1, 0]).scores.nan_to_num(nan=-1).tolist() == [-1, 0.5]
    labels = {"labels/a.txt": "0 0.5 0.5 0.2 0.2 0.125\n0 0.5 0.5 0.3 0.3\n"}
    write(tmp_path / "yolo", {"images/a.png": (64, 48)} | labels)
    scores = read_annotations(tmp_path / "yolo").scores
    assert scores.nan_to_num(nan=-1).tolist() == [0.125, -1]


@pytest.mark.parametrize("score", ["0.5", [1], True])
def test_a_score_that_is_no_number_is_refused(score, tmp_path):
    write(tmp_path, {"a.png": (64, 48)})
    document = coco(("a.png", (64, 48), [("cell", (1, 1, 5, 5))]))
    document["annotations"][0]["score"] = score
    write(tmp_path, {"a.json": document})
    with pytest.raises(BadInput, match=r"annotation 0: 'score' is .*, expected int or float"):
        read_annotations(tmp_path)


def test_proposals_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"det.json: is no file or folder .* correct data.proposals"):
        read_proposals(reader(tmp_path), tmp_path, ["det.json"])
