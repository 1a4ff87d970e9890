"""Move a rough box onto its object: box-offset regression that converges.

Every public name is here, and only here: `lightning_bbox.BinHead` is what configs, checkpoints and
your own code say, whatever room it lives in. A name is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_bbox.annotations.proposals.matching import Matching as Matching
    from lightning_bbox.annotations.read import read_annotations as read_annotations
    from lightning_bbox.annotations.table import BoxTable as BoxTable
    from lightning_bbox.core.errors import BadInput as BadInput
    from lightning_bbox.core.memory import keep_freed_memory as keep_freed_memory
    from lightning_bbox.core.recipes import Part as Part
    from lightning_bbox.data.boxes import BoxDataModule as BoxDataModule
    from lightning_bbox.data.module import CropDataModule as CropDataModule
    from lightning_bbox.data.options import Reading as Reading
    from lightning_bbox.data.options import Shares as Shares
    from lightning_bbox.data.options import Splits as Splits
    from lightning_bbox.data.patches import PatchDataModule as PatchDataModule
    from lightning_bbox.data.patches import TorchDataModule as TorchDataModule
    from lightning_bbox.data.scenes import SceneDataModule as SceneDataModule
    from lightning_bbox.geometry.codecs import DeltaCodec as DeltaCodec
    from lightning_bbox.geometry.codecs import FixedStdCodec as FixedStdCodec
    from lightning_bbox.geometry.codecs import MaxShiftCodec as MaxShiftCodec
    from lightning_bbox.geometry.codecs import MeanStdCodec as MeanStdCodec
    from lightning_bbox.geometry.codecs import OffsetSpec as OffsetSpec
    from lightning_bbox.geometry.codecs import PixelCodec as PixelCodec
    from lightning_bbox.geometry.codecs import WhitenedCodec as WhitenedCodec
    from lightning_bbox.geometry.crop_geometry import CropGeometry as CropGeometry
    from lightning_bbox.geometry.displacement import DisplacementLaw as DisplacementLaw
    from lightning_bbox.geometry.jitter import FittedJitter as FittedJitter
    from lightning_bbox.geometry.jitter import Jitter as Jitter
    from lightning_bbox.geometry.jitter import LaplaceJitter as LaplaceJitter
    from lightning_bbox.geometry.jitter import OverlapJitter as OverlapJitter
    from lightning_bbox.geometry.jitter import UniformJitter as UniformJitter
    from lightning_bbox.geometry.law_fitting import fit_law as fit_law
    from lightning_bbox.geometry.law_fitting import law_of_pairs as law_of_pairs
    from lightning_bbox.models.base import OffsetModel as OffsetModel
    from lightning_bbox.models.regressor import BoxRegressor as BoxRegressor
    from lightning_bbox.models.ridge import RidgeRegressor as RidgeRegressor
    from lightning_bbox.nn.backbones.alexnet import AlexNet as AlexNet
    from lightning_bbox.nn.backbones.base import Backbone as Backbone
    from lightning_bbox.nn.backbones.convnet import ShallowConvNet as ShallowConvNet
    from lightning_bbox.nn.backbones.extractor import FeatureExtractor as FeatureExtractor
    from lightning_bbox.nn.backbones.neck import Neck as Neck
    from lightning_bbox.nn.box_losses import BoxLoss as BoxLoss
    from lightning_bbox.nn.box_losses import CIoULoss as CIoULoss
    from lightning_bbox.nn.box_losses import DIoULoss as DIoULoss
    from lightning_bbox.nn.box_losses import GIoULoss as GIoULoss
    from lightning_bbox.nn.box_losses import IoULoss as IoULoss
    from lightning_bbox.nn.heads.base import Head as Head
    from lightning_bbox.nn.heads.bins.decoders import ArgmaxDecoder as ArgmaxDecoder
    from lightning_bbox.nn.heads.bins.decoders import Decoder as Decoder
    from lightning_bbox.nn.heads.bins.decoders import ExpectationDecoder as ExpectationDecoder
    from lightning_bbox.nn.heads.bins.decoders import MeanShiftDecoder as MeanShiftDecoder
    from lightning_bbox.nn.heads.bins.decoders import MedianDecoder as MedianDecoder
    from lightning_bbox.nn.heads.bins.decoders import ModeDecoder as ModeDecoder
    from lightning_bbox.nn.heads.bins.head import BinHead as BinHead
    from lightning_bbox.nn.heads.bins.labels import BinLabels as BinLabels
    from lightning_bbox.nn.heads.bins.labels import GaussianLabels as GaussianLabels
    from lightning_bbox.nn.heads.bins.labels import OneHotLabels as OneHotLabels
    from lightning_bbox.nn.heads.bins.labels import SmoothedLabels as SmoothedLabels
    from lightning_bbox.nn.heads.bins.labels import TwoHotLabels as TwoHotLabels
    from lightning_bbox.nn.heads.bins.links import CumulativeLink as CumulativeLink
    from lightning_bbox.nn.heads.bins.links import IndependentLink as IndependentLink
    from lightning_bbox.nn.heads.bins.links import Link as Link
    from lightning_bbox.nn.heads.bins.links import SoftmaxLink as SoftmaxLink
    from lightning_bbox.nn.heads.bins.links import TreeLink as TreeLink
    from lightning_bbox.nn.heads.bins.losses import AttributeHinge as AttributeHinge
    from lightning_bbox.nn.heads.bins.losses import BinaryCrossEntropy as BinaryCrossEntropy
    from lightning_bbox.nn.heads.bins.losses import BinLoss as BinLoss
    from lightning_bbox.nn.heads.bins.losses import CrossEntropy as CrossEntropy
    from lightning_bbox.nn.heads.bins.losses import StructuredHinge as StructuredHinge
    from lightning_bbox.nn.heads.bins.losses import WestonWatkinsHinge as WestonWatkinsHinge
    from lightning_bbox.nn.heads.likelihood import FlowLikelihood as FlowLikelihood
    from lightning_bbox.nn.heads.likelihood import GaussianLikelihood as GaussianLikelihood
    from lightning_bbox.nn.heads.likelihood import LaplaceLikelihood as LaplaceLikelihood
    from lightning_bbox.nn.heads.likelihood import Likelihood as Likelihood
    from lightning_bbox.nn.heads.likelihood import LikelihoodHead as LikelihoodHead
    from lightning_bbox.nn.heads.linear import LinearHead as LinearHead
    from lightning_bbox.nn.heads.soft_argmax import SoftArgmaxHead as SoftArgmaxHead
    from lightning_bbox.nn.inits import FanInInit as FanInInit
    from lightning_bbox.nn.inits import GlorotInit as GlorotInit
    from lightning_bbox.nn.inits import HeInit as HeInit
    from lightning_bbox.nn.inits import Init as Init
    from lightning_bbox.nn.inits import NormalInit as NormalInit
    from lightning_bbox.nn.inits import SparseInit as SparseInit
    from lightning_bbox.nn.inits import ZeroInit as ZeroInit
    from lightning_bbox.nn.losses import CharbonnierLoss as CharbonnierLoss
    from lightning_bbox.nn.losses import HuberLoss as HuberLoss
    from lightning_bbox.nn.losses import L1Loss as L1Loss
    from lightning_bbox.nn.losses import L2Loss as L2Loss
    from lightning_bbox.nn.losses import LogCoshLoss as LogCoshLoss
    from lightning_bbox.nn.losses import Loss as Loss
    from lightning_bbox.nn.losses import SmoothL1Loss as SmoothL1Loss
    from lightning_bbox.nn.preprocess import CaffeNorm as CaffeNorm
    from lightning_bbox.nn.preprocess import ChannelNorm as ChannelNorm
    from lightning_bbox.nn.preprocess import ImageNetNorm as ImageNetNorm
    from lightning_bbox.nn.preprocess import MeanNorm as MeanNorm
    from lightning_bbox.nn.preprocess import Preprocess as Preprocess
    from lightning_bbox.nn.preprocess import RangeNorm as RangeNorm
    from lightning_bbox.nn.regularizers import ElasticNet as ElasticNet
    from lightning_bbox.nn.regularizers import L1Penalty as L1Penalty
    from lightning_bbox.nn.regularizers import L2Penalty as L2Penalty
    from lightning_bbox.nn.regularizers import MaxNorm as MaxNorm
    from lightning_bbox.nn.regularizers import Regularizer as Regularizer
    from lightning_bbox.nn.schedules import Constant as Constant
    from lightning_bbox.nn.schedules import Cosine as Cosine
    from lightning_bbox.nn.schedules import OneCycle as OneCycle
    from lightning_bbox.nn.schedules import Plateau as Plateau
    from lightning_bbox.nn.schedules import Schedule as Schedule
    from lightning_bbox.nn.weight_groups import WeightGroups as WeightGroups
    from lightning_bbox.nn.weight_groups import WeightRule as WeightRule
    from lightning_bbox.nn.whitening import PCA as PCA
    from lightning_bbox.nn.whitening import PCAWhitening as PCAWhitening
    from lightning_bbox.nn.whitening import ZCAWhitening as ZCAWhitening
    from lightning_bbox.pictures.augment import Augment as Augment
    from lightning_bbox.pictures.places import Storage as Storage
    from lightning_bbox.refinement.refiner import Refiner as Refiner
    from lightning_bbox.refinement.refiner import refine as refine
    from lightning_bbox.solvers.sums import ridge as ridge

_HOMES = {
    "annotations.proposals.matching": "Matching",
    "annotations.read": "read_annotations",
    "annotations.table": "BoxTable",
    "core.errors": "BadInput",
    "core.memory": "keep_freed_memory",
    "core.recipes": "Part",
    "data.boxes": "BoxDataModule",
    "data.module": "CropDataModule",
    "data.options": "Reading Shares Splits",
    "data.patches": "PatchDataModule TorchDataModule",
    "data.scenes": "SceneDataModule",
    "geometry.codecs": "DeltaCodec FixedStdCodec MaxShiftCodec MeanStdCodec "
    "OffsetSpec PixelCodec WhitenedCodec",
    "geometry.crop_geometry": "CropGeometry",
    "geometry.displacement": "DisplacementLaw",
    "geometry.law_fitting": "fit_law law_of_pairs",
    "geometry.jitter": "FittedJitter Jitter LaplaceJitter OverlapJitter UniformJitter",
    "models.base": "OffsetModel",
    "models.regressor": "BoxRegressor",
    "models.ridge": "RidgeRegressor",
    "nn.backbones.alexnet": "AlexNet",
    "nn.backbones.base": "Backbone",
    "nn.backbones.convnet": "ShallowConvNet",
    "nn.backbones.extractor": "FeatureExtractor",
    "nn.backbones.neck": "Neck",
    "nn.box_losses": "BoxLoss CIoULoss DIoULoss GIoULoss IoULoss",
    "nn.heads.base": "Head",
    "nn.heads.bins.decoders": "ArgmaxDecoder Decoder ExpectationDecoder MeanShiftDecoder "
    "MedianDecoder ModeDecoder",
    "nn.heads.bins.head": "BinHead",
    "nn.heads.bins.labels": "BinLabels GaussianLabels OneHotLabels SmoothedLabels TwoHotLabels",
    "nn.heads.bins.links": "CumulativeLink IndependentLink Link SoftmaxLink TreeLink",
    "nn.heads.bins.losses": "AttributeHinge BinLoss BinaryCrossEntropy CrossEntropy "
    "StructuredHinge WestonWatkinsHinge",
    "nn.heads.likelihood": "FlowLikelihood GaussianLikelihood LaplaceLikelihood Likelihood "
    "LikelihoodHead",
    "nn.heads.linear": "LinearHead",
    "nn.heads.soft_argmax": "SoftArgmaxHead",
    "nn.inits": "FanInInit GlorotInit HeInit Init NormalInit SparseInit ZeroInit",
    "nn.losses": "CharbonnierLoss HuberLoss L1Loss L2Loss LogCoshLoss Loss SmoothL1Loss",
    "nn.preprocess": "CaffeNorm ChannelNorm ImageNetNorm MeanNorm Preprocess RangeNorm",
    "nn.regularizers": "ElasticNet L1Penalty L2Penalty MaxNorm Regularizer",
    "nn.schedules": "Constant Cosine OneCycle Plateau Schedule",
    "nn.weight_groups": "WeightGroups WeightRule",
    "nn.whitening": "PCA PCAWhitening ZCAWhitening",
    "pictures.augment": "Augment",
    "pictures.places": "Storage",
    "refinement.refiner": "Refiner refine",
    "solvers.sums": "ridge",
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 (names, as it must be)


def __getattr__(name: str) -> object:
    """Import a public name from its room."""
    if name not in _HOME_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
