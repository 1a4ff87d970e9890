"""A short form of the campaign of damaged files."""

import sys

import pytest

from tests.runs import run


@pytest.mark.slow
def test_no_damage_ends_in_a_traceback_or_changes_another_file():
    # A process of its own: it forks, and must have run nothing yet.
    finished = run([sys.executable, "-m", "tests.campaign", "--trials=12"])
    assert finished.code == 0, finished.out + finished.err
    assert "12 trials: " in finished.out
    assert "; 0 problems" in finished.out
