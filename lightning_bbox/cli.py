"""The command line: `lightning-bbox fit|validate|test`, built on LightningCLI."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from lightning_bbox.callbacks import PlainProgress, RunReport, TensorBoardPictures, Throughput
from lightning_bbox.checkpoints import AtomicCheckpointIO, RunCheckpoint, read_checkpoint
from lightning_bbox.data import CropDataModule
from lightning_bbox.errors import BadInput, listed
from lightning_bbox.options import OneSentenceParser, cause
from lightning_bbox.tasks import BoxRegressor, DivergedError

PRESET = "preset:"
_PACKAGE = Path(__file__).parent
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where presets lie: inside an installed package, beside it in a checkout."""

EPOCHS = 22
"""Under four minutes on two CPU cores, with 20,000 draws an epoch."""


class BoxCLI(LightningCLI):
    """LightningCLI with a run folder, our trainer defaults, and a test at the end of `fit`."""

    run_folder: Path

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands and what of the trainer's arguments isn't an option."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, and one seed for everything."""
        parser.add_argument(
            "--name",
            type=str | None,
            help="name of the run; by default the config's stem and the time",
        )
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration: a checkpoint's own settings never replace what was asked for."""

    def before_instantiate_classes(self) -> None:
        """Settle on the run's folder."""
        config = self.config[self.subcommand]
        launched = None if config.name else os.environ.get("LIGHTNING_BBOX_RUN")
        name = config.name or _default_name(config)
        self.run_folder = Path(launched or Path(config.runs) / name)
        os.environ["LIGHTNING_BBOX_RUN"] = str(self.run_folder)
        if config.ckpt_path in ("best", "last"):
            config.ckpt_path = str(self.run_folder / "checkpoints" / f"{config.ckpt_path}.ckpt")
        checkpoint = config.ckpt_path
        if checkpoint is None and self.subcommand != "fit":
            msg = f"{self.subcommand} needs a trained model; add --ckpt_path and a checkpoint"
            raise BadInput(msg)
        if checkpoint is not None:
            read_checkpoint(checkpoint)
        resuming = self.subcommand == "fit" and checkpoint is not None
        taken = (self.run_folder / "checkpoints").exists() and "LOCAL_RANK" not in os.environ
        if taken and not resuming:
            msg = (
                f"{self.run_folder}: a run of this name exists; choose another --name, "
                f"or continue it with --resume {self.run_folder}"
            )
            raise BadInput(msg)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401 (Lightning's)
        """Add the logger and callbacks that every run has."""
        config = self._get(self.config_init, "trainer")
        if config.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                str(self.run_folder.parent),
                name="",
                version=self.run_folder.name,
                default_hp_metric=False,
            )
        callbacks: list[pl.Callback] = [
            RunReport(self.run_folder),
            TensorBoardPictures(self._settings()),
            Throughput(),
        ]
        if self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
            self.save_config_callback = None
        elif config.enable_checkpointing is not False:
            callbacks.append(RunCheckpoint(self.run_folder / "checkpoints"))
            kwargs["plugins"] = [AtomicCheckpointIO(), *_as_list(config.plugins)]
        if config.enable_progress_bar is None:
            kwargs["enable_progress_bar"] = sys.stderr.isatty()
        if not kwargs.get("enable_progress_bar", config.enable_progress_bar):
            callbacks.append(PlainProgress())
        kwargs["default_root_dir"] = str(self.run_folder)
        trainer_config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        trainer: pl.Trainer = self._instantiate_trainer(trainer_config, callbacks)
        return trainer

    def _instantiate_trainer(
        self, config: dict[str, Any], callbacks: list[pl.Callback]
    ) -> pl.Trainer:
        """Make the trainer, and refuse devices and precisions that aren't there."""
        try:
            with warnings.catch_warnings():
                # It would go on in bf16-mixed, which is not what was asked for.
                warnings.filterwarnings("error", message="You passed .*AMP with fp16")
                trainer: pl.Trainer = super()._instantiate_trainer(config, callbacks)
        except BadInput:
            raise
        except UserWarning as warning:
            if "fp16" not in str(warning):
                raise
            msg = (
                f"trainer.precision: is {config['precision']!r}, which a CPU can't do; "
                f"choose bf16-mixed or 32-true"
            )
            raise BadInput(msg) from warning
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            first = " ".join(str(error).split()).partition(". ")[0].rstrip(".!")
            msg = f"trainer: {first}; correct its accelerator, devices, strategy or precision"
            raise BadInput(msg) from error
        return trainer

    def _settings(self) -> dict[str, Any]:
        """Return the model's and data's configuration by dotted name, for the hparams view."""
        self._dump_config()
        return _flat({key: self.config_dump[key] for key in ("model", "data", "seed_everything")})

    def test(self, model: pl.LightningModule, **kwargs: Any) -> None:  # noqa: ANN401 (Lightning's)
        """Test without Lightning's own table: ours says it."""
        self.trainer.test(model, **{**kwargs, "verbose": False})

    def after_fit(self) -> None:
        """Test the best checkpoint, or the model as it is where none was kept."""
        settings = self._get(self.config_init, "trainer")
        if settings.fast_dev_run:
            return
        checkpoint = None if settings.enable_checkpointing is False else "best"
        self.trainer.test(
            self.model,
            datamodule=self.datamodule,
            ckpt_path=checkpoint,
            weights_only=True,
            verbose=False,
        )


class ReusableConfig(SaveConfigCallback):
    """Save the configuration without what belongs to this run only, so that it can be run again."""

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, overwrite: bool = False
    ) -> None:
        config = config.clone()
        config.name = config.ckpt_path = None
        super().__init__(parser, config, overwrite=overwrite)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is done, 1 diverged, 2 bad input, 130 interrupted, 143 terminated.

    Args:
        args: The command line; that of the process by default.

    Examples:
        >>> main(["fit", "-c", "preset:no_such"])
        2
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if "LOCAL_RANK" not in os.environ:
        os.environ.pop("LIGHTNING_BBOX_RUN", None)
    _quieten()
    try:
        BoxCLI(
            BoxRegressor,
            CropDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=resolve(arguments),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=ReusableConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=OneSentenceParser,
            parser_kwargs={"allow_abbrev": False, "prog": "lightning-bbox"},
            trainer_defaults={
                "max_epochs": EPOCHS,
                "precision": default_precision(),
                "log_every_n_steps": 50,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
        )
    except DivergedError as error:
        sys.stderr.write(f"lightning-bbox: {error}\n")
        return 1
    except SIGTERMException:
        return _stopped("terminated", 143)
    except KeyboardInterrupt:
        return _stopped("interrupted", 130)
    except (ValueError, MisconfigurationException, SystemExit) as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            return _stopped("interrupted", 130)
        if (refusal := cause(leaving, BadInput, MisconfigurationException)) is not None:
            sys.stderr.write(f"lightning-bbox: {' '.join(str(refusal).split())}\n")
            return 2
        if isinstance(leaving, SystemExit):
            return int(leaving.code or 0)
        raise
    return 0


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value] * (value is not None)


def _stopped(how: str, code: int) -> int:
    folder = os.environ.get("LIGHTNING_BBOX_RUN")
    remedy = f"; continue a fit with --resume {folder}" if folder else ""
    sys.stderr.write(f"lightning-bbox: {how}{remedy}\n")
    return code


def _quieten() -> None:
    """Silence what Lightning says at every start; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # It expects `args` from Python only, but ours are the command line's, resolved.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    # A run that is resumed has checkpoints; others are refused before they begin.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Testing a checkpoint needs none of the callbacks that trained it.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
    # We refuse such pictures in a sentence of our own.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    # Lightning 2.6.6 hasn't followed torch 2.13's pytree.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


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
    """Replace presets by their files, and `--resume FOLDER` by the options it stands for.

    Raises:
        BadInput: There is no such preset, or no run to resume.

    Examples:
        >>> resolve(["fit", "--trainer.max_epochs=1"])
        ['fit', '--trainer.max_epochs=1']
    """
    resolved: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--resume" or argument.startswith("--resume="):
            folder = argument.partition("=")[2] or next(rest, "")
            resolved += _resumed(Path(folder))
        elif PRESET in argument:
            option, _, name = argument.partition(PRESET)
            resolved.append(option + str(_preset(name)))
        else:
            resolved.append(argument)
    return resolved


def _preset(name: str) -> Path:
    for folder in CONFIG_FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    names = sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})
    msg = f"there is no preset {name!r}; choose one of {listed(names)}"
    raise BadInput(msg)


def _resumed(folder: Path) -> list[str]:
    config, checkpoint = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    for path in (config, checkpoint):
        if not path.is_file():
            msg = f"{path}: missing, so this run can't be resumed; start it anew"
            raise BadInput(msg)
    return [
        f"--config={config}",
        f"--runs={folder.parent}",
        f"--name={folder.name}",
        f"--ckpt_path={checkpoint}",
    ]


def _default_name(config: Namespace) -> str:
    """Name a run after its first config (a saved one: after the run it came from) and the time."""
    files = config.get("config") or []
    first = Path(str(files[0])) if files else Path("run")
    stem = first.resolve().parent.name if first.name == "config.yaml" else first.stem
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"


def _flat(tree: object, name: str = "") -> dict[str, bool | int | float | str]:
    """Flatten a configuration to dotted names, classes by their short names, without None."""
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        return {name: tree if isinstance(tree, bool | int | float | str) else str(tree)}
    if "class_path" in tree:
        inner = tree.get("init_args") or {}
        return {name: str(tree["class_path"]).rpartition(".")[2], **_flat(inner, name)}
    prefix = f"{name}." if name else ""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        flat |= _flat(value, prefix + str(key))
    return flat
