"""The machines that a study is made on: each makes its share of the runs."""

from typing import NamedTuple

from torch import distributed

from lightning_bbox.core.errors import BadInput


class Node(NamedTuple):
    """One of the machines that a study is made on; the only one by default.

    They share the study's folder, and where there are several, a process group.

    Attributes:
        number: Which one, from 0.
        in_all: How many there are.
    """

    number: int = 0
    in_all: int = 1

    def meet(self) -> None:
        """Wait until all machines are here.

        Raises:
            BadInput: Another one has ended.
        """
        if self.in_all == 1:
            return
        try:
            distributed.barrier()
        except RuntimeError as error:  # what Gloo says where a connection is lost
            msg = "another machine of the study has ended; see what it says"
            raise BadInput(msg) from error
