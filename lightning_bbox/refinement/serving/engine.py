"""What answers requests: one thread with the model, which takes all that wait at once."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.refinement.refiner import Refinement, Refiner

BATCH = 16
"""Crops that the network sees at once: requests are filled up to a multiple of it."""


class Asked(NamedTuple):
    """A request.

    Attributes:
        picture: RGB.
        boxes: Rough boxes (n, 4), `xyxy` in its pixels.
        labels: Their classes, for a model with a regressor for each.
    """

    picture: UInt8[np.ndarray, "h w 3"]
    boxes: Tensor
    labels: Sequence[str] | None = None


class BusyError(Exception):
    """As many requests wait as may."""


class Engine:
    """Answer requests in one thread; those that wait are refined together.

    What a request gets is to the bit what it gets alone, and what a `Refiner` says of it that is
    `isolated` and has the same batch size.

    Args:
        refiner: An isolated one.
        most_waiting: How many requests may wait.
        most_boxes: How many boxes are refined together, but for a request that has more.

    Raises:
        BadInput: The refiner isn't isolated.
    """

    def __init__(self, refiner: Refiner, most_waiting: int = 256, most_boxes: int = 4096) -> None:
        if not refiner.isolated:
            msg = "the refiner isn't isolated, so answers would depend on other requests; set it so"
            raise BadInput(msg)
        self.refiner, self.most_boxes = refiner, most_boxes
        self.passes = 0
        self._waiting = queue.Queue[tuple[Asked, Future[Refinement]] | None](most_waiting)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, asked: Asked) -> "Future[Refinement]":
        """Have a request answered.

        Args:
            asked: The request.

        Raises:
            BusyError: As many wait as may.
        """
        future = Future[Refinement]()
        try:
            self._waiting.put_nowait((asked, future))
        except queue.Full as error:
            raise BusyError from error
        return future

    def close(self) -> None:
        """Answer what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.close()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            taken, ends = [first], False
            boxes = len(first[0].boxes)
            while boxes < self.most_boxes and not self._waiting.empty():
                one = self._waiting.get()
                if one is None:
                    ends = True
                    break
                taken.append(one)
                boxes += len(one[0].boxes)
            # Whoever hung up meanwhile has cancelled, and can't any more from here on.
            self._answer([one for one in taken if one[1].set_running_or_notify_cancel()])
            if ends:
                return

    def _answer(self, taken: list[tuple[Asked, "Future[Refinement]"]]) -> None:
        """Refine requests together; where that fails, each alone, so that one fails alone."""
        self.passes += 1
        try:
            found = self._refined([asked for asked, _ in taken])
        except Exception as error:  # noqa: BLE001 (whoever asked gets it)
            if len(taken) == 1:
                taken[0][1].set_exception(error)
                return
            for one in taken:
                self._answer([one])
            return
        for (_, future), refinement in zip(taken, found, strict=True):
            future.set_result(refinement)

    def _refined(self, asked: list[Asked]) -> list[Refinement]:
        per_class = self.refiner.model.net.head.per_class
        labels = [one.labels or [] for one in asked] if per_class else None
        pictures, boxes = [one.picture for one in asked], [one.boxes for one in asked]
        return self.refiner.refine_batch(pictures, boxes, labels)
