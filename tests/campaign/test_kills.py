"""A short form of the campaign of kills."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_runs_hit_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    # A process of its own: it forks, and must have run nothing yet.
    command = [sys.executable, "-m", "tests.campaign.kills", f"--keep={tmp_path / 'runs'}"]
    finished = subprocess.run(
        [*command, "--kills=4", "--terms=3"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "7 hits" in finished.stdout
