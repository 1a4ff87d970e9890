import pytest
import torch

from lightning_bbox import BoxRegressor, LinearHead, ShallowConvNet
from lightning_bbox.geometry.boxes import box_centers
from tests.parts import spec_of


@pytest.mark.parametrize("num_targets", [2, 4])
def test_over_flips_a_shift_that_ignores_the_picture_averages_out(num_targets: int) -> None:
    model = BoxRegressor(ShallowConvNet(channels=(4,), fc=()), LinearHead(), average_flips=True)
    model.build(spec_of(num_targets), seed=0)
    model.eval()
    with torch.no_grad():
        model.net.head.linear.weight.zero_()
        model.net.head.linear.bias.fill_(0.1)
    proposals = torch.tensor([[10.0, 20.0, 40.0, 60.0], [5.0, 5.0, 50.0, 30.0]])
    averaged, _ = model.refine(torch.rand(2, 3, 45, 45), proposals)
    torch.testing.assert_close(box_centers(averaged), box_centers(proposals))
    model.average_flips = False
    once, _ = model.refine(torch.rand(2, 3, 45, 45), proposals)
    assert (box_centers(once) - box_centers(proposals)).abs().min() > 0.1
