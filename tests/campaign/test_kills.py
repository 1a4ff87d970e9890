"""A short form of the campaign of kills."""

import sys

import pytest

from tests.runs import run


@pytest.mark.slow
def test_runs_hit_at_any_moment_lose_nothing(tmp_path):
    # A process of its own: it forks, and must have run nothing yet.
    command = [sys.executable, "-m", "tests.campaign.kills", f"--keep={tmp_path / 'runs'}"]
    finished = run([*command, "--kills=4", "--terms=3"])
    assert finished.code == 0, finished.out + finished.err
    assert "7 hits" in finished.out
