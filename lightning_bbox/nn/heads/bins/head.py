"""Bins: classify each coordinate's offset, and decode the distribution."""

import math
from copy import deepcopy
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.codecs import OffsetSpec
from lightning_bbox.nn.heads.base import Head, MapShape, Targets, ToBoxes, of_class
from lightning_bbox.nn.heads.bins.decoders import Decoder, ExpectationDecoder, ModeDecoder
from lightning_bbox.nn.heads.bins.labels import BinGrid, BinLabels, lay_grid
from lightning_bbox.nn.heads.bins.links import Link, Logits
from lightning_bbox.nn.heads.bins.losses import BinLoss, usual_loss


class BinHead(Head):
    """Classify each coordinate into bins, and decode what is said of them.

    Each coordinate's range is cut into bins that reach beyond the largest offset by what the labels
    need. Four parts combine: labels say what the truth is as a distribution over bins, a link makes
    a distribution of features, a loss compares the two, and a decoder finds the offset. What isn't
    given is what usually goes with the rest: without any, HL-Gauss, a softmax, cross-entropy and
    the expectation, 27 bins for shifts up to 5 px.

    Args:
        labels: `GaussianLabels`, `TwoHotLabels`, `OneHotLabels` or `SmoothedLabels`; the loss's
            usual ones by default.
        link: `SoftmaxLink`, `TreeLink`, `CumulativeLink` or `IndependentLink`; the loss's usual one
            by default.
        loss: `CrossEntropy`, `BinaryCrossEntropy`, `WestonWatkinsHinge`, `StructuredHinge` or
            `AttributeHinge`; the link's usual one by default.
        decoder: `ExpectationDecoder`, `ArgmaxDecoder`, `MeanShiftDecoder`, `MedianDecoder` or
            `ModeDecoder`; by default the expectation, and around the mode after a hinge, whose
            scores aren't probabilities.
        bin_width: Width of the shifts' bins, in px.
        log_bin_width: Width of the sizes' bins, in log size.
        grids: How many discretisations there are, each shifted by a bin's width over their number
            and with its own outputs. Their losses are averaged, all their votes decoded together.
        l1_weight: Weight of an L1 loss on the expectation, in standard deviations of the training
            targets.
        max_shift: Largest shift that the bins hold, in px; the data's by default.
        per_class: A layer for each class instead of one for all; the bins are the same.

    Raises:
        BadInput: A number is out of its range, or the parts don't fit each other.

    References:
        Farebrother et al., Stop regressing: training value functions via classification (2024).
        Hara et al., Designing deep convolutional neural networks for continuous object orientation
        estimation (2017), for the shifted grids. CS231n notes, Loss functions.

    Examples:
        >>> from lightning_bbox import CropGeometry
        >>> head = BinHead().build(8, OffsetSpec(CropGeometry(), 2, 5.0, 0.0))
        >>> head.centers[0, [0, 13, 26]]
        tensor([-6.5000,  0.0000,  6.5000])
    """

    keeps = ("origin", "unit", "std")
    edges: Tensor
    centers: Tensor
    inside: Tensor
    widths: Tensor
    origin: Tensor
    unit: Tensor
    std: Tensor

    def __init__(
        self,
        labels: BinLabels | None = None,
        link: Link | None = None,
        loss: BinLoss | None = None,
        decoder: Decoder | None = None,
        bin_width: float = 0.5,
        log_bin_width: float = 0.05,
        grids: int = 1,
        l1_weight: float = 0.0,
        max_shift: float | None = None,
        per_class: bool = False,
    ) -> None:
        super().__init__()
        self.per_class = per_class
        if not all(0 < width < math.inf for width in (bin_width, log_bin_width)):
            given = f"bin_width {bin_width} and log_bin_width {log_bin_width}"
            msg = f"BinHead's {given} must both be positive"
            raise BadInput(msg)
        reach = 1.0 if max_shift is None else max_shift
        if grids < 1 or not (0 <= l1_weight < math.inf and 0 < reach < math.inf):
            msg = (
                f"BinHead's grids {grids}, l1_weight {l1_weight}, max_shift {max_shift}: expected "
                f"at least 1, at least 0, and a positive number of px"
            )
            raise BadInput(msg)
        self.criterion = loss or usual_loss(link)
        self.link = link or next(iter(self.criterion.fits))()
        usual_labels = self.criterion.usual_labels(self.link)
        self.labels = labels or usual_labels
        self.criterion.refuse_misfits(self.labels)
        if l1_weight and not self.criterion.probabilistic:
            name = type(self.criterion).__name__
            msg = f"l1_weight {l1_weight} needs probabilities, which {name} doesn't give; set it 0"
            raise BadInput(msg)
        usual_decoder = ExpectationDecoder() if self.criterion.probabilistic else ModeDecoder()
        self.decoder = decoder or usual_decoder
        self.bin_width, self.log_bin_width = bin_width, log_bin_width
        self.grids, self.l1_weight, self.max_shift = grids, l1_weight, max_shift

    def build(self, in_features: int, spec: OffsetSpec, map_shape: MapShape | None = None) -> Self:
        """Lay the bins out, symmetric about 0, in px and log size, and make the link's layer."""
        self.reach = (self.max_shift or spec.max_shift, spec.max_log_size)
        grid = self.lay(spec)
        for name, buffer in grid._replace(inside=grid.inside.byte())._asdict().items():
            self.register_buffer(name, buffer, persistent=False)
        super().build(in_features, spec)
        prior = grid.prior(torch.tensor(spec.bounds * self.grids))
        self.link.build(in_features, grid.inside, prior)
        if self.per_class:
            more = [deepcopy(self.link) for _ in spec.classes[1:]]
            self.other_links = nn.ModuleList(
                link.build(in_features, grid.inside, prior) for link in more
            )
        return self

    def lay(self, spec: OffsetSpec) -> BinGrid:
        """Return the bins that the head has for some data.

        Args:
            spec: What there is to know of the data.
        """
        bounds = [self.max_shift or spec.max_shift] * 2 + spec.bounds[2:]
        widths = [self.bin_width] * 2 + [self.log_bin_width] * (spec.num_targets - 2)
        return lay_grid(bounds, widths, self.labels.padding, self.grids)

    @property
    def grid(self) -> BinGrid:
        """The bins of each row: the coordinates of the first grid, then those of the next."""
        return BinGrid(self.centers, self.edges, self.inside.bool(), self.widths)

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b *c r m"]:
        """Return the link's logits, a row for each coordinate of each grid, of each class."""
        logits: Tensor = self.link(features)
        if not self.per_class:
            return logits
        return torch.stack([logits, *(link(features) for link in self.other_links)], dim=1)

    def select(self, outputs: Float[Tensor, "b *c r m"], labels: Int64[Tensor, " b"]) -> Logits:
        """Return the logits of each sample's class."""
        return of_class(outputs, labels) if self.per_class else outputs

    def offsets(self, targets: Targets) -> Targets:
        """Return where targets lie in px and log size."""
        return (targets.float() - self.origin) / self.unit

    def target_probs(self, targets: Targets) -> Float[Tensor, "b r k"]:
        """Return the labels: the distribution over bins that each row is to have."""
        return self.labels(self.offsets(targets).repeat(1, self.grids), self.grid)

    def loss(
        self, outputs: Logits, targets: Targets, to_boxes: ToBoxes | None = None
    ) -> Float[Tensor, " b"]:
        """Return the loss, summed over coordinates, on average over grids."""
        losses = self.criterion(self.link, outputs, self.target_probs(targets), self.grid)
        losses = losses / self.grids
        if self.l1_weight:
            errors = (self._mean(outputs) - self.offsets(targets)) * self.unit / self.std
            losses = losses + self.l1_weight * errors.abs().sum(dim=-1)
        return losses

    def probs(self, outputs: Logits) -> Float[Tensor, "b r k"]:
        """Return the predicted distribution over each row's bins."""
        return self.link.probs(outputs)

    def votes(self, outputs: Logits) -> Float[Tensor, "b n v"]:
        """Return the weights of all grids' bins together, of which each coordinate's sum to 1."""
        return self._together(self.probs(outputs)) / self.grids

    def decode(self, outputs: Logits) -> Targets:
        """Return what the decoder makes of the votes, as targets."""
        offsets = self.decoder(self.votes(outputs), *self._vote_bins())
        return self.origin + offsets * self.unit

    def stds(self, outputs: Logits) -> Float[Tensor, "b n"]:
        """Return the votes' standard deviations, without the blur of the labels; NaN of a hinge."""
        if not self.criterion.probabilistic:
            return super().stds(outputs)
        votes, (centers, widths) = self.votes(outputs), self._vote_bins()
        means = (votes * centers).sum(dim=-1, keepdim=True)
        variances = (votes * (centers - means).square()).sum(dim=-1)
        blur = self.labels.blur(self.grid)[: len(widths)] * widths.square()
        return (variances - blur).clamp(min=0).sqrt()

    def nll(self, outputs: Logits, targets: Targets) -> Float[Tensor, "b n"]:
        """Return minus the log density at the truth, by px and by log size; NaN of a hinge.

        The density is even within a bin, and averaged over grids. A truth beyond the range counts
        as its end.
        """
        if not self.criterion.probabilistic:
            return torch.full_like(targets.float(), math.nan)
        true_bins = self.grid.true_bins(self.offsets(targets).repeat(1, self.grids))
        log_probs = self.link.log_probs(outputs).gather(-1, true_bins[..., None]).squeeze(-1)
        densities = torch.unflatten(log_probs - self.widths.log(), 1, (self.grids, -1))
        return math.log(self.grids) - densities.logsumexp(dim=1)

    def _mean(self, outputs: Logits) -> Targets:
        return (self.votes(outputs) * self._vote_bins()[0]).sum(dim=-1)

    def _vote_bins(self) -> tuple[Float[Tensor, "n v"], Float[Tensor, " n"]]:
        return self._together(self.centers[None])[0], self.widths[: len(self.unit)]

    def _together(self, rows: Float[Tensor, "b r k"]) -> Float[Tensor, "b n v"]:
        # The grids' bins alternate, so that their centres ascend.
        grids = torch.unflatten(rows, 1, (self.grids, -1))
        return grids.permute(0, 2, 3, 1).flatten(2)
