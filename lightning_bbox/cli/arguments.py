"""What people write on the command line, made into what LightningCLI takes."""

from datetime import datetime
from pathlib import Path

import torch
from jsonargparse import Namespace

from lightning_bbox.core.errors import BadInput

PRESET = "preset:"
_PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where presets lie: inside an installed package, beside it in a checkout."""


def default_precision() -> str:
    """Return bf16-mixed where the hardware multiplies in bf16, else fp32.

    Examples:
        >>> default_precision() in ("bf16-mixed", "32-true")
        True
    """
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def resolve(arguments: list[str]) -> list[str]:
    """Replace presets by their files, and what names a run's folder by the options it stands for.

    `--resume FOLDER` goes on with a run; `--ckpt_path FOLDER` without a config takes the run's own.

    Raises:
        BadInput: There is no such preset, or no run to resume.

    Examples:
        >>> resolve(["fit", "--trainer.max_epochs=1"])
        ['fit', '--trainer.max_epochs=1']
    """
    resolved: list[str] = []
    resumed: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--resume" or argument.startswith("--resume="):
            folder = argument.partition("=")[2] or next(rest, "")
            resumed = _resumed(Path(folder))
        elif PRESET in argument:
            option, _, name = argument.partition(PRESET)
            resolved.append(option + str(_preset(name)))
        else:
            resolved.append(argument)
    # First, so that what else the command line says wins.
    return [*resolved[:1], *(resumed or _config_of_run(resolved)), *resolved[1:]]


def _config_of_run(arguments: list[str]) -> list[str]:
    """Return the option that takes the configuration of the run whose folder is the checkpoint."""
    options = [argument.partition("=")[0] for argument in arguments]
    if "--ckpt_path" not in options or {"-c", "--config"} & set(options):
        return []
    at = options.index("--ckpt_path")
    folder = arguments[at].partition("=")[2] or (arguments[at + 1 :] or [""])[0]
    if folder not in ("", "best", "last") and not Path(folder).exists():
        msg = f"{folder}: no such run or checkpoint; correct --ckpt_path"
        raise BadInput(msg)
    config = Path(folder) / "config.yaml"
    return [f"--config={config}"] if folder and config.is_file() else []


def _preset(name: str) -> Path:
    for folder in CONFIG_FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    kind = "compare/" * name.startswith("compare/")
    names = sorted(
        {kind + path.stem for folder in CONFIG_FOLDERS for path in folder.glob(f"{kind}*.yaml")}
    )
    msg = f"there is no preset {name!r}; choose one of {', '.join(names)}"
    raise BadInput(msg)


def _resumed(folder: Path) -> list[str]:
    folder = folder if folder.name else folder.resolve()
    config = folder / "config.yaml"
    if not folder.is_dir():
        msg = f"{folder}: no such run; --resume takes the folder of one"
        raise BadInput(msg)
    if not config.is_file():
        msg = f"{config}: missing, so this run can't be resumed; start it anew"
        raise BadInput(msg)
    return [
        f"--config={config}",
        f"--runs={folder.parent}",
        f"--name={folder.name}",
        f"--ckpt_path={folder}",
    ]


def default_name(config: Namespace) -> str:
    """Name a run after its first config (a saved one: after the run it came from) and the time.

    Examples:
        >>> default_name(Namespace(config=["configs/voc.yaml"])).rpartition("-")[0][:4]
        'voc-'
    """
    files = config.get("config") or []
    first = Path(str(files[0])) if files else Path("run")
    stem = first.resolve().parent.name if first.name == "config.yaml" else first.stem
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
