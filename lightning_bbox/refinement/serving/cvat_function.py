"""A function for CVAT's SDK and command line, which refines the boxes that a task has already.

CVAT tells such a function the picture alone; the boxes come from an export of the task.
"""

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.core.errors import BadInput
from lightning_bbox.refinement.refiner import Refiner

if TYPE_CHECKING:
    from cvat_sdk import models
    from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec


class RefiningFunction:
    """Return the boxes of an export where they should be, frame by frame.

    Args:
        checkpoint: A run's folder, or a checkpoint.
        root: Folder of the export, with its pictures, in any format that is read.

    Attributes:
        spec: The export's classes as CVAT's SDK takes them.

    Raises:
        BadInput: The checkpoint or the export can't be read, or the SDK isn't there.
    """

    spec: "DetectionFunctionSpec"

    def __init__(self, checkpoint: str, root: str) -> None:
        try:
            from cvat_sdk import auto_annotation
        except ImportError as error:
            msg = "CVAT's function needs its SDK; pip install cvat-sdk"
            raise BadInput(msg) from error
        self.refiner = Refiner(checkpoint)
        part = self.refiner.spec.part
        self.table = read_annotations(root, rough=True, page=part.page, bands=part.bands)
        labels = [
            auto_annotation.label_spec(name, at) for at, name in enumerate(self.table.classes)
        ]
        self.spec = auto_annotation.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: "DetectionFunctionContext", image: Image.Image
    ) -> "list[models.LabeledShapeRequest]":
        """Return a frame's boxes, refined, those that stay too.

        Args:
            context: What CVAT says of the frame, such as its name.
            image: Its picture.

        Raises:
            BadInput: The export has no picture of that name, or several.
        """
        from cvat_sdk.auto_annotation import rectangle

        rows = (self.table.image_index == self._picture(context.frame_name)).nonzero().flatten()
        numbers = self.table.labels[rows].tolist()
        names = [self.table.classes[number] for number in numbers]
        found = self.refiner.refine_with_std(image, self.table.boxes[rows], names).boxes
        return [rectangle(number, box) for number, box in zip(numbers, found.tolist(), strict=True)]

    def _picture(self, frame: str) -> int:
        """Return which of the export's pictures a frame is: of its path, or else of its name."""
        images = self.table.images
        if frame in images:
            return images.index(frame)
        name = PurePosixPath(frame).name
        same = [at for at, path in enumerate(images) if PurePosixPath(path).name == name]
        if len(same) != 1:
            problem = f"is the name of {len(same)} pictures of {self.table.root}"
            raise BadInput.at(frame, problem, "export the task anew, with its pictures")
        return same[0]


def create(checkpoint: str, root: str) -> RefiningFunction:
    """Make the function, as `cvat-cli` asks for it.

    Args:
        checkpoint: A run's folder, or a checkpoint.
        root: Folder of the export, with its pictures.

    Raises:
        BadInput: The checkpoint or the export can't be read, or the SDK isn't there.
    """
    return RefiningFunction(checkpoint, root)
