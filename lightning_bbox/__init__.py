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
from lightning_bbox.jitter import LaplaceJitter, OverlapJitter, UniformJitter
from lightning_bbox.links import CumulativeLink, IndependentLink, SoftmaxLink, TreeLink
from lightning_bbox.losses import L1Loss, L2Loss, SmoothL1Loss
from lightning_bbox.patch_data import PatchDataModule
from lightning_bbox.preprocess import CaffeNorm, ChannelNorm, ImageNetNorm
from lightning_bbox.refiner import Refiner, refine
from lightning_bbox.ridge_regressor import RidgeRegressor
from lightning_bbox.ridge_sums import ridge
from lightning_bbox.scene_data import SceneDataModule
from lightning_bbox.schedules import Constant, Cosine, OneCycle
from lightning_bbox.tasks import BoxRegressor

__all__ = [
    "AlexNet",
    "ArgmaxDecoder",
    "AttributeHinge",
    "Augment",
    "BadInput",
    "BinHead",
    "BinaryCrossEntropy",
    "BoxDataModule",
    "BoxRegressor",
    "CaffeNorm",
    "ChannelNorm",
    "Constant",
    "Cosine",
    "CropGeometry",
    "CrossEntropy",
    "CumulativeLink",
    "DeltaCodec",
    "ExpectationDecoder",
    "FeatureExtractor",
    "FixedStdCodec",
    "GaussianLabels",
    "ImageNetNorm",
    "IndependentLink",
    "L1Loss",
    "L2Loss",
    "LaplaceJitter",
    "LinearHead",
    "MaxShiftCodec",
    "MeanShiftDecoder",
    "MeanStdCodec",
    "MedianDecoder",
    "ModeDecoder",
    "OneCycle",
    "OneHotLabels",
    "OverlapJitter",
    "PatchDataModule",
    "PixelCodec",
    "Refiner",
    "RidgeRegressor",
    "SceneDataModule",
    "ShallowConvNet",
    "SmoothL1Loss",
    "SmoothedLabels",
    "SoftmaxLink",
    "StructuredHinge",
    "TreeLink",
    "TwoHotLabels",
    "UniformJitter",
    "WestonWatkinsHinge",
    "WhitenedCodec",
    "refine",
    "ridge",
]
