"""Boxes refined on pictures at hand."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import (
    BadInput,
    BoxRegressor,
    CropGeometry,
    DisplacementLaw,
    LinearHead,
    OffsetModel,
    OffsetSpec,
    Refiner,
    RidgeRegressor,
    SceneDataModule,
    ShallowConvNet,
    refine,
)
from lightning_bbox.geometry.boxes import box_centers, mirror_boxes
from lightning_bbox.geometry.class_laws import ClassLaws
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.geometry.weighing import move_under
from lightning_bbox.pictures import packing
from lightning_bbox.pictures.store import ImageStore
from lightning_bbox.refinement.asked import as_rgb
from lightning_bbox.refinement.outcomes import clip_or_restore


def built_model(num_targets=2, head=None, average_flips=False, seed=0, kind=BoxRegressor, **parts):
    """Make a model that moves boxes by something: its head's weights are random."""
    backbone = ShallowConvNet(channels=(4, 8), convs_per_scale=1, fc=(16,))
    model = kind(backbone, head, average_flips=average_flips, **parts)
    geometry = CropGeometry(size=32, context=1.5)
    model.build(OffsetSpec(geometry, num_targets, max_shift=5.0, max_log_size=0.2), seed)
    random = torch.Generator().manual_seed(seed)
    proposals = torch.tensor([[10.0, 10, 40, 40]]).expand(200, 4)
    model.codec.fit(proposals + 3 * torch.randn(200, 4, generator=random), proposals)
    model.net.head.fit(model.codec.space())
    with torch.no_grad():
        for parameter in model.net.head.parameters():
            parameter.normal_(std=0.3, generator=random)
    return model.eval()


def picture(height=70, width=90):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


BOXES = np.array([[10.0, 10, 40, 44], [50, 5, 80, 30], [20, 30, 60, 65]])


@pytest.mark.parametrize("num_targets", [2, 4])
@pytest.mark.parametrize("average_flips", [False, True])
def test_a_refiner_gives_what_the_model_gives_on_the_same_crops(num_targets, average_flips):
    data = SceneDataModule(num_scenes=20, eval_draws=16, compile=False, num_targets=num_targets)
    model = built_model(num_targets, average_flips=average_flips)
    data.follow(model.spec)
    samples = data.samples("val")
    expected, stds = model.refine(data.cut(samples), samples.proposals)
    refiner = Refiner(model)
    for row in range(4):
        image = data.source.store.picture(int(samples.image_index[row]))
        found = refiner.refine_with_std(image, samples.proposals[row : row + 1])
        assert not found.unmoved
        limits = torch.tensor([image.shape[1], image.shape[0]] * 2)
        clipped = expected[row].clamp(min=0).minimum(limits)
        torch.testing.assert_close(found.boxes[0], clipped, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.stds[0], stds[row], rtol=1e-3, atol=1e-3)


def test_only_what_the_crops_need_is_packed_and_boxes_are_the_same_to_the_bit(monkeypatch):
    packed, number, from_pictures = [], packing._numbers, ImageStore.from_pictures
    monkeypatch.setattr(packing, "_numbers", lambda a: packed.append(a[..., 0].size) or number(a))
    image, boxes = picture(3000, 4000), np.vstack([BOXES, [[3950.0, 2900, 3999, 2999]]])
    refiner = Refiner(built_model(num_targets=4))
    found = refiner.refine_with_std(image, boxes[:1])
    assert 45**2 < sum(packed) < 60**2  # the crop of a box of 30 px, and what its samples reach
    found, packed[:] = refiner.refine_with_std(image, boxes), []
    monkeypatch.setattr(ImageStore, "from_pictures", lambda pictures, **_: from_pictures(pictures))
    whole = refiner.refine_with_std(image, boxes)
    assert sum(packed) == 3000 * 4000
    assert torch.equal(found.boxes, whole.boxes)
    assert torch.equal(found.stds, whole.stds)


def test_the_kind_of_boxes_decides_the_kind_of_the_result():
    refiner = Refiner(built_model())
    array = refiner.refine(picture(), BOXES)
    tensor = refiner.refine(picture(), torch.from_numpy(BOXES))
    assert np.array_equal(refiner.refine(picture(), BOXES.tolist()), array)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array), tensor)
    assert not np.allclose(array, BOXES)


def test_a_picture_may_come_in_any_form(tmp_path):
    pixels, path = picture(), tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor, mirrored = torch.from_numpy(pixels).permute(2, 0, 1), pixels[:, ::-1]
    for form in (path, str(path), Image.fromarray(pixels), tensor, mirrored[:, ::-1]):
        assert np.array_equal(as_rgb(form), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_an_open_picture_is_turned_as_its_file_is(tmp_path, suffix, orientation):
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(path, exif=exif)
    with Image.open(path) as image:
        assert np.array_equal(as_rgb(image), as_rgb(path))


def test_grey_is_the_same_grey_in_three_channels():
    grey = picture()[..., 0]
    for form in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(as_rgb(form), np.stack([grey] * 3, axis=-1))


def test_refined_boxes_lie_inside_the_picture():
    boxes = np.array([[0.0, 0, 30, 30], [60, 40, 90, 70], [80, 60, 90, 70]])
    for seed in range(5):
        refined = Refiner(built_model(num_targets=4, seed=seed)).refine(picture(), boxes)
        assert (refined >= 0).all()
        assert (refined <= [90, 70, 90, 70]).all()
        assert (refined[:, 2:] > refined[:, :2]).all()


def test_bad_boxes_come_back_as_they_were_and_are_told():
    boxes = np.vstack([BOXES, [[5, 5, 5, 9], [200, 5, 230, 9], [math.nan, 1, 2, 3]]])
    refiner = Refiner(built_model())
    with pytest.warns(UserWarning, match="3 of 6 boxes stay as they were; the first is box 3: has"):
        refined = refiner.refine(picture(), boxes)
    np.testing.assert_array_equal(refined[3:], boxes[3:].astype(np.float32))
    np.testing.assert_allclose(refined[:3], refiner.refine(picture(), BOXES), atol=1e-3)
    assert refiner.refine_with_std(picture(), boxes).unmoved == {
        3: "has no positive width",
        4: "lies outside the picture",
        5: "is not finite",
    }


def test_max_shift_leaves_boxes_that_would_go_farther():
    model, image, boxes = built_model(), picture(140, 180), 2 * BOXES
    free = Refiner(model).refine(image, boxes)
    px = (boxes[:, 2:] - boxes[:, :2]) / 30
    moved = np.abs((free - boxes)[:, :2] / px).max(axis=1)
    bound = float(np.sort(moved)[1]) + 1e-3
    with pytest.warns(UserWarning, match="more than max_shift"):
        refined = Refiner(model, max_shift=bound).refine(image, boxes)
    far = moved > bound
    assert far.sum() == 1
    np.testing.assert_array_equal(refined[far], boxes[far])
    np.testing.assert_array_equal(refined[~far], free[~far])


def test_averages_over_flips_refine_a_mirrored_picture_to_mirrored_boxes():
    model = built_model(num_targets=4, average_flips=True)
    crops = torch.from_numpy(picture(32, 32)).permute(2, 0, 1)[None] / 255
    rough = torch.from_numpy(BOXES[:1]).float()
    boxes, mirrored = (model.refine(each, rough)[0] for each in (crops, crops.flip(3)))
    expected = mirror_boxes(boxes, box_centers(rough), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(mirrored, expected, rtol=0, atol=1e-3)
    assert (mirrored - boxes).abs().max() > 0.05


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (picture() / 255, "the image is float64; give uint8"),
        (picture().transpose(2, 0, 1), r"the shape \(3, 70, 90\); expected RGB or grey"),
        (torch.zeros(70, 90, 3, dtype=torch.uint8), r"the shape \(70, 90, 3\); expected RGB"),
        (np.zeros((4, 4, 4), np.uint8), r"the shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"the shape \(0, 4, 3\)"),
        ("nowhere.png", "nowhere.png: no such picture"),
        (Image.new("F", (4, 4)), "its mode 'F' has 32 bits a pixel"),
    ],
)
def test_pictures_that_cannot_be_meant_are_refused(image, message):
    with pytest.raises(BadInput, match=message):
        as_rgb(image)


def test_boxes_of_another_shape_and_a_model_that_was_not_trained_are_refused():
    with pytest.raises(BadInput, match=r"boxes have the shape \(4,\); expected \(n, 4\)"):
        Refiner(built_model()).refine(picture(), np.array([1.0, 2, 3, 4]))
    with pytest.raises(BadInput, match="the model isn't trained"):
        Refiner(BoxRegressor())


class Careful(BoxRegressor):
    """Move boxes half as far."""

    def _decode(self, outputs, proposals):
        return (super()._decode(outputs, proposals) + proposals) / 2


def saved(model, path):
    """Write what a run would write of a model."""
    checkpoint = {"state_dict": model.state_dict(), "global_step": 0}
    OffsetModel.on_save_checkpoint(model, checkpoint)
    torch.save(checkpoint, path)
    return path


def test_a_model_of_ones_own_class_is_that_again_from_its_path(tmp_path):
    own = built_model(kind=Careful)
    path = saved(own, tmp_path / "own.ckpt")
    expected = Refiner(own).refine(picture(), BOXES)
    np.testing.assert_array_equal(refine(picture(), BOXES, path), expected)
    usual = refine(picture(), BOXES, saved(built_model(), tmp_path / "usual.ckpt"))
    np.testing.assert_allclose(2 * (expected - BOXES), usual - BOXES, atol=1e-4)
    for kind in (OffsetModel, BoxRegressor, Careful):
        assert type(kind.load_from_checkpoint(path)) is Careful
    for model in (RidgeRegressor(), BoxRegressor()):
        with pytest.raises(BadInput, match=r"is a tests\..*\.Careful, and .*Regressor lacks what"):
            model.restore(path)


STRANGE = """
from lightning_bbox import BoxRegressor, Preprocess
class Own(BoxRegressor): ...
class Plain(Preprocess):
    def forward(self, crops):
        return crops
"""


@pytest.mark.parametrize("what", ["the model", "a part"])
def test_a_checkpoint_has_nothing_imported_that_is_not_trusted(what, tmp_path, monkeypatch):
    (tmp_path / "strange.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(tmp_path)
    import strange

    kind = strange.Own if what == "the model" else BoxRegressor
    model = built_model(kind=kind, preprocess=None if what == "the model" else strange.Plain())
    path = saved(model, tmp_path / "strange.ckpt")
    del sys.modules["strange"]
    with pytest.raises(BadInput, match=r"needs strange\.\w+, and .* pass trust=\['strange'\]"):
        Refiner(path)
    assert "strange" not in sys.modules
    again = Refiner(path, trust=["strange"]).refine(picture(), BOXES)
    np.testing.assert_array_equal(again, Refiner(model).refine(picture(), BOXES))


def test_a_linear_head_can_not_tell():
    found = Refiner(built_model(head=LinearHead())).refine_with_std(picture(), BOXES)
    assert found.stds.isnan().all()


def test_a_box_that_is_lost_stays():
    rough = torch.tensor([[10.0, 10, 40, 40]] * 3)
    new = torch.tensor([[math.nan, 0, 1, 1], [200, 200, 230, 230], [12, 10, 42, 40]])
    boxes, reasons = clip_or_restore(new, rough, torch.full((3, 2), 100), CropGeometry())
    assert torch.equal(boxes, torch.stack([rough[0], rough[1], new[2]]))
    assert reasons == {
        0: "the model's box is not finite",
        1: "would have no area inside the picture",
    }


def test_several_pictures_of_several_sizes_give_what_each_gives_alone():
    images = [picture(), picture(64, 50), picture(120, 100)]
    boxes = [BOXES, np.zeros((0, 4)), np.vstack([BOXES[:2], [[5, 5, 5, 9]]])]
    model = built_model(num_targets=4)
    found = Refiner(model, batch_size=2).refine_batch(images, boxes)
    assert [len(one.boxes) for one in found] == [3, 0, 3]
    assert [one.unmoved for one in found] == [{}, {}, {2: "has no positive width"}]
    refiner = Refiner(model)
    for image, rough, one in zip(images, boxes, found, strict=True):
        alone = refiner.refine_with_std(image, rough)
        torch.testing.assert_close(one.boxes, alone.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(one.stds, alone.stds, rtol=0, atol=1e-3, equal_nan=True)
    assert refiner.refine_batch([], []) == []
    with pytest.raises(BadInput, match="there are 1 pictures and 0 sets of boxes"):
        refiner.refine_batch(images[:1], [])


def with_law(num_targets=4):
    """Make a model that knows how it errs, and has a law for few boxes."""
    model = built_model(num_targets=num_targets)
    parts = (0.01,) * 4, (0.9,) * 4, (1.2,) * 4, ((0.9, 1.0), (0.1, 2.0)), (0.3,) * 4
    model.reliability = Reliability(*parts)
    model.law = DisplacementLaw(0.5, (0.5,), ((0.0,) * 4,), ((0.5,) * 4,))
    return model


def test_boxes_move_by_the_models_own_law_unless_another_is_asked_for():
    model = with_law()
    trained = Refiner(model, law="trained").refine_with_std(picture(), BOXES)
    own = Refiner(model).refine_with_std(picture(), BOXES)
    rough = torch.from_numpy(BOXES).float()
    under = move_under(
        model.law, trained.boxes, trained.stds, rough, model.spec.geometry, model.reliability
    )
    clipped, _ = clip_or_restore(
        under.boxes, rough, torch.tensor([[70, 90]] * 3), model.spec.geometry
    )
    torch.testing.assert_close(own.boxes, clipped)
    torch.testing.assert_close(own.stds, under.stds)
    named = Refiner(model, law=model.law).refine_with_std(picture(), BOXES)
    assert torch.equal(named.boxes, own.boxes)
    with pytest.raises(BadInput, match="law is 'auto'; give own, trained"):
        Refiner(model, law="auto")
    with pytest.raises(BadInput, match="give own, trained"):
        Refiner(model, law=ClassLaws(model.law))


def test_a_box_does_not_depend_on_its_neighbours():
    refiner = Refiner(with_law())
    together = refiner.refine(picture(), BOXES)
    for at in range(3):
        alone = refiner.refine(picture(), BOXES[at : at + 1])
        np.testing.assert_allclose(alone[0], together[at], rtol=0, atol=1e-4)


def test_a_model_that_has_no_law_moves_boxes_as_in_training():
    model = built_model(num_targets=4)
    expected = Refiner(model, law="trained").refine(picture(), BOXES)
    np.testing.assert_array_equal(Refiner(model).refine(picture(), BOXES), expected)
