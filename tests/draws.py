"""What hypothesis draws: boxes, in fp64 so that a property is not blurred by rounding."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

# Two busy cores: a deadline would measure the neighbours.
settings.register_profile("shared", max_examples=60, deadline=None)
THOROUGH = settings.get_profile("shared")

coordinates = st.floats(-300, 300, width=32)
sides = st.floats(4, 200, width=32)


def box_sets(count):
    """Draw `count` tensors (n, 4) of boxes between 4 and 200 px wide and high."""
    box = st.tuples(coordinates, coordinates, sides, sides)
    rows = st.lists(st.tuples(*[box] * count), min_size=1, max_size=6)
    return rows.map(_tensors)


def _tensors(rows):
    corners = torch.tensor(rows, dtype=torch.float64).unbind(dim=1)
    return tuple(torch.cat([c[:, :2], c[:, :2] + c[:, 2:]], dim=1) for c in corners)
