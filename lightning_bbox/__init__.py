"""Move a rough box onto its object: box-offset regression that converges."""

from lightning_bbox.alexnet import AlexNet
from lightning_bbox.augment import Augment
from lightning_bbox.backbones import ShallowConvNet
from lightning_bbox.bin_head import BinHead
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
from lightning_bbox.errors import BadInput
from lightning_bbox.extractor import FeatureExtractor
from lightning_bbox.heads import LinearHead
from lightning_bbox.jitter import LaplaceJitter, OverlapJitter, UniformJitter
from lightning_bbox.losses import L1Loss, L2Loss, SmoothL1Loss
from lightning_bbox.patch_data import PatchDataModule
from lightning_bbox.preprocess import CaffeNorm, ChannelNorm, ImageNetNorm
from lightning_bbox.refiner import Refiner, refine
from lightning_bbox.regularizers import ElasticNet, L1Penalty, L2Penalty, MaxNorm
from lightning_bbox.ridge_regressor import RidgeRegressor
from lightning_bbox.ridge_sums import ridge
from lightning_bbox.scene_data import SceneDataModule
from lightning_bbox.schedules import Constant, Cosine, OneCycle
from lightning_bbox.tasks import BoxRegressor

__all__ = [
    "AlexNet",
    "Augment",
    "BadInput",
    "BinHead",
    "BoxDataModule",
    "BoxRegressor",
    "CaffeNorm",
    "ChannelNorm",
    "Constant",
    "Cosine",
    "CropGeometry",
    "DeltaCodec",
    "ElasticNet",
    "FeatureExtractor",
    "FixedStdCodec",
    "ImageNetNorm",
    "L1Loss",
    "L1Penalty",
    "L2Loss",
    "L2Penalty",
    "LaplaceJitter",
    "LinearHead",
    "MaxNorm",
    "MaxShiftCodec",
    "MeanStdCodec",
    "OneCycle",
    "OverlapJitter",
    "PatchDataModule",
    "PixelCodec",
    "Refiner",
    "RidgeRegressor",
    "SceneDataModule",
    "ShallowConvNet",
    "SmoothL1Loss",
    "UniformJitter",
    "WhitenedCodec",
    "refine",
    "ridge",
]
