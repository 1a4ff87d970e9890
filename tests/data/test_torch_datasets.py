"""Crops and boxes of torch datasets, as training data."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_bbox import BoxRegressor, CropGeometry, ShallowConvNet, TorchDataModule
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.jitter import UniformJitter
from tests.crops import batch_of
from tests.runs import same

PROPOSAL = torch.tensor([7.5, 7.5, 37.5, 37.5])


class Squares(Dataset):
    """White squares of 30 px on black, off by up to 5 px of a crop's middle; no iterator."""

    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shifts = 10 * torch.rand(count, 2, generator=generator) - 5
        self.boxes = PROPOSAL + shifts.repeat(1, 2)

    def __len__(self):
        return len(self.boxes)

    def __getitem__(self, at):
        if not 0 <= at < len(self):
            raise AssertionError
        x1, y1, x2, y2 = self.boxes[at]
        places = torch.arange(45) + 0.5
        columns, rows = (places > x1) & (places < x2), (places > y1) & (places < y2)
        return (rows[:, None] & columns).float().expand(3, -1, -1), PROPOSAL, self.boxes[at]


def module(train, **options):
    small = {"batch_size": 32, "draws_per_epoch": 320, "eval_draws": 64, "compile": False}
    return TorchDataModule(train, Squares(20, 1), Squares(20, 2), **small | options)


def test_crops_and_boxes_are_those_that_were_given():
    data = module(Squares(40))
    samples, batch = data.samples("test"), batch_of(data, "test")
    crops = torch.stack([Squares(20, 2)[at][0] for at in samples.items.tolist()])
    torch.testing.assert_close(batch.crops, crops)
    assert torch.equal(samples.gt_boxes, Squares(20, 2).boxes[samples.items])
    assert torch.equal(samples.proposals, PROPOSAL.expand_as(samples.proposals))


@pytest.mark.parametrize("form", ["loader", "iterable", "tensors", "uint8", "grey"])
def test_the_form_of_a_dataset_makes_no_difference(form):
    whole = Squares(40)
    crops = torch.stack([whole[at][0] for at in range(len(whole))])
    same_as = {
        "loader": lambda: DataLoader(whole, batch_size=7),
        "iterable": lambda: (whole[at] for at in range(len(whole))),
        "tensors": lambda: TensorDataset(crops, PROPOSAL.expand(40, 4), whole.boxes),
        "uint8": lambda: TensorDataset((255 * crops).byte(), PROPOSAL.expand(40, 4), whole.boxes),
        "grey": lambda: TensorDataset(crops[:, :1], PROPOSAL.expand(40, 4), whole.boxes),
    }
    ours, theirs = (module(dataset) for dataset in (whole, same_as[form]()))
    assert same(batch_of(ours, "train")._asdict(), batch_of(theirs, "train")._asdict())


def test_a_regressor_learns_from_a_dataset_and_comes_back_from_its_checkpoint(tmp_path):
    data = module(Squares(200), draws_per_epoch=640)
    trainer = pl.Trainer(
        max_epochs=5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        accelerator="cpu", devices=1, use_distributed_sampler=False,
    )  # fmt: skip
    model = BoxRegressor(ShallowConvNet(channels=(8, 16, 16), fc=(32,)))
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = BoxRegressor.load_from_checkpoint(tmp_path / "model.ckpt")
    samples = data.samples("test")
    boxes, _ = again.refine(data.crops_of(samples), samples.proposals)
    error = (boxes - samples.gt_boxes).abs().mean()
    assert error < 0.6 * (samples.proposals - samples.gt_boxes).abs().mean()


CROP = torch.zeros(3, 45, 45)
REFUSALS = {
    "two": ((CROP, PROPOSAL), "item 0 of train is no (crop, proposal, gt_box)"),
    "no map": ((CROP[0], PROPOSAL, PROPOSAL), "has a crop of shape [45, 45]; expected 1 or 3 x"),
    "last": ((CROP.movedim(0, 2), PROPOSAL, PROPOSAL), "has a crop of shape [45, 45, 3]"),
    "range": ((CROP + 2, PROPOSAL, PROPOSAL), "has a crop of 2 to 2; expected 0 to 1, or uint8"),
    "nan": ((CROP / 0, PROPOSAL, PROPOSAL), "has a crop of nan to nan"),
    "integers": ((CROP.long(), PROPOSAL, PROPOSAL), "has a crop of torch.int64; expected uint8"),
    "box": ((CROP, PROPOSAL[:3], PROPOSAL), "has the proposal [7.5, 7.5, 37.5]; expected x1,"),
    "width": ((CROP, PROPOSAL, PROPOSAL * 0), "has the true box [0.0, 0.0, 0.0, 0.0]; expected"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_crop_with_two_boxes_is_refused_by_its_number(name):
    item, message = REFUSALS[name]
    with pytest.raises(BadInput) as refusal:
        _ = module([item]).source
    assert message in str(refusal.value)


def test_a_jitter_and_a_dataset_without_items_are_refused():
    with pytest.raises(BadInput, match="draws no proposals where the dataset gives them"):
        module(Squares(4), jitter=UniformJitter())
    with pytest.raises(BadInput, match="the train split has no boxes left"):
        _ = module([]).source


def test_the_crop_may_be_cut_closer_than_it_was_given():
    data = module(Squares(40), crop=CropGeometry(size=30, context=1.0))
    crops = batch_of(data, "val").crops
    given = torch.stack([Squares(20, 1)[at][0] for at in data.samples("val").items.tolist()])
    # The proposal begins between two pixels, so that every pixel is the mean of four.
    means = torch.nn.functional.avg_pool2d(given, 2, 1)[:, :, 7:37, 7:37]
    torch.testing.assert_close(crops, means[: len(crops)], atol=1e-5, rtol=0.0)
