"""What systems without Linux' own calls must do: import everything, read, train, refine."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.runs import TINY

# As on Windows: modules that aren't there, and calls that `os` hasn't. Torch and Lightning are
# imported first, for on Linux they may use theirs.
HIDE = """
import os, sys
import lightning.pytorch, lightning.pytorch.cli, kornia.augmentation, torch.utils.tensorboard
import torchmetrics, matplotlib.figure, matplotlib.pyplot
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "grp", "pwd"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
for name in ("fcntl", "resource", "grp", "pwd"):
    sys.modules.pop(name, None)
for name in [name for name in sys.modules if name.partition(".")[0] == "filelock"]:
    del sys.modules[name]
sys.meta_path.insert(0, Hidden())
for name in ("sched_getaffinity", "sysconf", "posix_fadvise", "setpgid", "getpgid", "fork"):
    delattr(os, name)
"""
USE = """
import importlib, pkgutil, warnings
from pathlib import Path
import torch
warnings.filterwarnings("ignore", message="only soft file lock is available")
import lightning_bbox
for found in pkgutil.walk_packages(lightning_bbox.__path__, "lightning_bbox."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from lightning_bbox.cli.main import main
from lightning_bbox.core.memory import *

keep_freed_memory()
assert free_host_memory(Path("nowhere")) > 0 == peak_host_memory()
assert usable_cores() == (os.cpu_count() or 1)
data = ["-c", "preset:csv", f"--data.root={sys.argv[1]}"]
disk = ["--data.store.place=disk", "--data.store.folder=store"]
run = ["--trainer.max_epochs=1", "--name=run"]
for folder in ("first", "second"):  # which decodes the pictures, and which reads them
    assert main(["fit", *data, *disk, *sys.argv[2:], *run, f"--runs={folder}"]) == 0
refine = ["predict", *data, "--data.compile=false", "--ckpt_path=first/run", "--name=refined"]
assert main(refine) == 0
print(*sorted(set(sys.modules) & {"fcntl", "resource"}))
"""


def test_everything_is_imported_and_a_run_is_made_without_linux_calls(
    csv_folder: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-W",
        "error::ResourceWarning",
        "-c",
        HIDE + USE,
        str(csv_folder),
        *TINY,
    ]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
    assert (
        done.stdout.count("pictures decoded into") == done.stdout.count("pictures read from") == 1
    )
    assert (tmp_path / "runs" / "refined" / "changes.csv").is_file()
