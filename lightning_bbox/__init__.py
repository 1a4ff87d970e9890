"""Move a rough box onto its object: box-offset regression that converges."""

from lightning_bbox.alexnet import AlexNet
from lightning_bbox.augment import Augment
from lightning_bbox.backbones import ShallowConvNet
from lightning_bbox.bin_head import BinHead
from lightning_bbox.bin_losses import (
    AttributeHinge,
    BinaryCrossEntropy,
    CrossEntropy,
    StructuredHinge,
    WestonWatkinsHinge,
)
from lightning_bbox.bins import GaussianLabels, OneHotLabels, SmoothedLabels, TwoHotLabels
from lightning_bbox.box_data import BoxDataModule
from lightning_bbox.box_losses import CIoULoss, DIoULoss, GIoULoss, IoULoss
from lightning_bbox.codecs import (
    DeltaCodec,
    FixedStdCodec,
    MaxShiftCodec,
    MeanStdCodec,
    PixelCodec,
    WhitenedCodec,
)
from lightning_bbox.crops import CropGeometry
from lightning_bbox.decoders import (
    ArgmaxDecoder,
    ExpectationDecoder,
    MeanShiftDecoder,
    MedianDecoder,
    ModeDecoder,
)
from lightning_bbox.errors import BadInput
from lightning_bbox.extractor import FeatureExtractor
from lightning_bbox.heads import LinearHead
from lightning_bbox.inits import (
    FanInInit,
    GlorotInit,
    HeInit,
    NormalInit,
    SparseInit,
    ZeroInit,
)
from lightning_bbox.jitter import LaplaceJitter, OverlapJitter, UniformJitter
from lightning_bbox.likelihood_head import LikelihoodHead
from lightning_bbox.likelihoods import FlowLikelihood, GaussianLikelihood, LaplaceLikelihood
from lightning_bbox.links import CumulativeLink, IndependentLink, SoftmaxLink, TreeLink
from lightning_bbox.losses import (
    CharbonnierLoss,
    HuberLoss,
    L1Loss,
    L2Loss,
    LogCoshLoss,
    SmoothL1Loss,
)
from lightning_bbox.patch_data import PatchDataModule
from lightning_bbox.preprocess import CaffeNorm, ChannelNorm, ImageNetNorm, MeanNorm, RangeNorm
from lightning_bbox.refiner import Refiner, refine
from lightning_bbox.regularizers import ElasticNet, L1Penalty, L2Penalty, MaxNorm
from lightning_bbox.ridge_regressor import RidgeRegressor
from lightning_bbox.ridge_sums import ridge
from lightning_bbox.scene_data import SceneDataModule
from lightning_bbox.schedules import Constant, Cosine, OneCycle
from lightning_bbox.soft_argmax import SoftArgmaxHead
from lightning_bbox.tasks import BoxRegressor
from lightning_bbox.whitening import PCA, PCAWhitening, ZCAWhitening

__all__ = [
    "PCA",
    "AlexNet",
    "ArgmaxDecoder",
    "AttributeHinge",
    "Augment",
    "BadInput",
    "BinHead",
    "BinaryCrossEntropy",
    "BoxDataModule",
    "BoxRegressor",
    "CIoULoss",
    "CaffeNorm",
    "ChannelNorm",
    "CharbonnierLoss",
    "Constant",
    "Cosine",
    "CropGeometry",
    "CrossEntropy",
    "CumulativeLink",
    "DIoULoss",
    "DeltaCodec",
    "ElasticNet",
    "ExpectationDecoder",
    "FanInInit",
    "FeatureExtractor",
    "FixedStdCodec",
    "FlowLikelihood",
    "GIoULoss",
    "GaussianLabels",
    "GaussianLikelihood",
    "GlorotInit",
    "HeInit",
    "HuberLoss",
    "ImageNetNorm",
    "IndependentLink",
    "IoULoss",
    "L1Loss",
    "L1Penalty",
    "L2Loss",
    "L2Penalty",
    "LaplaceJitter",
    "LaplaceLikelihood",
    "LikelihoodHead",
    "LinearHead",
    "LogCoshLoss",
    "MaxNorm",
    "MaxShiftCodec",
    "MeanNorm",
    "MeanShiftDecoder",
    "MeanStdCodec",
    "MedianDecoder",
    "ModeDecoder",
    "NormalInit",
    "OneCycle",
    "OneHotLabels",
    "OverlapJitter",
    "PCAWhitening",
    "PatchDataModule",
    "PixelCodec",
    "RangeNorm",
    "Refiner",
    "RidgeRegressor",
    "SceneDataModule",
    "ShallowConvNet",
    "SmoothL1Loss",
    "SmoothedLabels",
    "SoftArgmaxHead",
    "SoftmaxLink",
    "SparseInit",
    "StructuredHinge",
    "TreeLink",
    "TwoHotLabels",
    "UniformJitter",
    "WestonWatkinsHinge",
    "WhitenedCodec",
    "ZCAWhitening",
    "ZeroInit",
    "refine",
    "ridge",
]
