"""Files that are whole or not there, locks, and what is never written over."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import (
    locked,
    read_yaml,
    remove_leftovers,
    remove_leftovers_of,
    replacing,
    write_atomically,
)

HOLD = """
import sys, time
from pathlib import Path
from lightning_bbox.core.files import (
    locked,
    remove_leftovers,
    remove_leftovers_of,
    replacing,
    write_atomically,
)
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
TAKEN = BadInput("somebody else is here; wait")


def test_a_lock_is_waited_for_and_keeps_a_file_that_lies_there(tmp_path):
    path, order = tmp_path / "lock", []
    path.write_text("mine")

    def second():
        with locked(path):
            order.append("second")

    waiting = threading.Thread(target=second)
    with locked(path):
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert path.read_text() == "mine"


def test_a_lock_of_another_process_refuses_until_that_is_killed(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BadInput) as refused, locked(path, refusal=TAKEN):
            pass
        assert refused.value is TAKEN
        other.kill()
    with locked(path, refusal=TAKEN), pytest.raises(BadInput), locked(path, refusal=TAKEN):
        pass
    with locked(path, refusal=TAKEN):
        pass


def test_a_lock_that_cannot_be_made_is_refused_with_the_option(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(BadInput, match=r"lock: can't be written .*--here")
    with refused, locked(tmp_path / "file" / "lock", "--here"):
        pass


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o666, 0o755, 0o444])
def test_a_file_that_is_written_anew_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("old")
    path.chmod(mode)
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_is_written_is_never_more_open_than_what_was_there(tmp_path):
    path = tmp_path / "boxes.csv"
    path.touch(mode=0o600)
    with replacing(path):
        (temporary,) = tmp_path.glob(".*")
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


def test_a_new_file_has_the_permissions_that_new_files_have(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_only_what_a_killed_write_signed_is_removed(tmp_path):
    theirs = [tmp_path / name for name in (".a.123.tmp", "b.lightning_bbox.tmp", ".lightning_bbox")]
    ours = tmp_path / "inner" / ".a.123.lightning_bbox.tmp"
    ours.parent.mkdir()
    for remove in (
        lambda: remove_leftovers(tmp_path),
        lambda: remove_leftovers_of(tmp_path / "inner" / "a"),
    ):
        for path in (*theirs, ours):
            path.touch()
        remove()
        assert not ours.exists()
        assert all(path.exists() for path in theirs)


@pytest.mark.parametrize("value", ["2024-99-99", "!!timestamp x", "!!int x", "[" * 3000])
def test_values_that_yaml_can_not_make_are_refused(value, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(f"seed: {value}\n")
    with pytest.raises(BadInput, match=r"a\.yaml"):
        read_yaml(path, "write options")
