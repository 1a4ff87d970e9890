"""The command line: `lightning-bbox fit|validate|test|predict`, built on LightningCLI."""

import argparse
import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from lightning_bbox.arguments import EPOCHS, default_name, default_precision, resolve
from lightning_bbox.callbacks import (
    EventLog,
    PlainProgress,
    RunReport,
    TensorBoardPictures,
    Throughput,
)
from lightning_bbox.checkpoints import (
    AtomicCheckpointIO,
    RunCheckpoint,
    checkpoint_of,
    newest_checkpoint,
    read_checkpoint,
)
from lightning_bbox.data import CropDataModule
from lightning_bbox.divergence import DivergedError
from lightning_bbox.errors import BadInput
from lightning_bbox.files import cannot_write, make_folder, remove_leftovers, write_atomically
from lightning_bbox.models import OffsetModel
from lightning_bbox.options import OneSentenceParser, cause
from lightning_bbox.parts import flatten
from lightning_bbox.predictions import PredictionFiles, put_originals_back
from lightning_bbox.stopping import RunStopped, StopBetweenSteps, sigterm_raises
from lightning_bbox.tasks import BoxRegressor

COMMANDS = {
    "fit": "Train a model, and test its best checkpoint.",
    "validate": "Measure a trained model on the validation split.",
    "test": "Measure a trained model on the test split.",
    "predict": "Refine the boxes of annotation files with a trained model.",
}
_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BoxCLI(LightningCLI):
    """LightningCLI with a run folder, our trainer defaults, and a test at the end of `fit`."""

    run_folder: Path
    _kept: RunCheckpoint | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands and what of the trainer's arguments isn't an option, or not as is."""
        unused = {"ckpt_path", "weights_only", "verbose", "return_predictions"}
        return {name: skip | unused for name, skip in LightningCLI.subcommands().items()}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:  # noqa: ANN401
        """Say in the help what the commands do here."""
        super()._add_subcommands(parser, **kwargs)
        (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        for command in commands._choices_actions:
            command.help = COMMANDS[command.dest]

    def _prepare_subcommand_parser(
        self,
        klass: type,
        subcommand: str,
        **kwargs: Any,  # noqa: ANN401 (Lightning's)
    ) -> LightningArgumentParser:
        """Add what `predict` alone takes."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument(
                "--max_shift",
                type=PositiveFloat | None,
                help="leave boxes that would move farther, in px (1/45 of the crop's side)",
            )
            parser.add_argument(
                "--overwrite",
                type=bool,
                default=False,
                help="write over the annotation files too; what they held is kept in before/",
            )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, the checkpoint, and one seed for everything."""
        parser.add_argument(
            "--name",
            type=str | None,
            help="name of the run; by default the config's stem and the time",
        )
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="checkpoint to go on from, or to apply: a file, the folder of a run, or last or "
            "best of the run of this name",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration: a checkpoint's own settings never replace what was asked for."""

    def before_instantiate_classes(self) -> None:
        """Settle on the run's folder."""
        config = self.config[self.subcommand]
        launched = None if config.name else os.environ.get("LIGHTNING_BBOX_RUN")
        name = config.name or default_name(config)
        self.run_folder = Path(launched or Path(config.runs) / name)
        os.environ["LIGHTNING_BBOX_RUN"] = str(self.run_folder)
        resuming = self.subcommand == "fit" and self._is_own(config.ckpt_path)
        self._find_checkpoint(config)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined] # Lightning sets it
            self._refuse_taken_folder(resuming)
            remove_leftovers(self.run_folder)
            if resuming and config.ckpt_path:
                self._begin_last(Path(config.ckpt_path))
            if self.subcommand == "predict":
                put_originals_back(self.run_folder)

    def _is_own(self, checkpoint: str | None) -> bool:
        """Tell whether a checkpoint, or a folder of some, is this run's."""
        if checkpoint in (None, "best", "last"):
            return checkpoint is not None
        return self.run_folder.resolve() in (Path(str(checkpoint)).resolve() / "any").parents

    def _begin_last(self, checkpoint: Path) -> None:
        """Make the checkpoint that a run goes on from its last, whichever it is."""
        last = self.run_folder / "checkpoints" / "last.ckpt"
        if checkpoint.resolve() != last.resolve():
            write_atomically(last, checkpoint.read_bytes())

    def _find_checkpoint(self, config: Namespace) -> None:
        """Settle on the checkpoint to go on from, or to apply."""
        asked = config.ckpt_path
        if asked is None and self.subcommand != "fit":
            msg = f"{self.subcommand} needs a trained model; add --ckpt_path and a checkpoint"
            raise BadInput(msg)
        if asked is None:
            return
        if self.subcommand != "fit" or not (asked == "last" or Path(asked).is_dir()):
            named = self.run_folder / "checkpoints" / f"{asked}.ckpt"
            config.ckpt_path = str(named if asked in ("best", "last") else checkpoint_of(asked))
            read_checkpoint(config.ckpt_path)
            return
        folder = self.run_folder if asked == "last" else Path(asked)
        found, unread = newest_checkpoint(folder / "checkpoints")
        for sentence in unread:
            rank_zero_warn(f"{sentence}; going on from {found}")
        if found is None:
            rank_zero_warn(f"{folder}: has no checkpoint yet, so the run begins anew")
        config.ckpt_path = found and str(found)

    def _refuse_taken_folder(self, resuming: bool) -> None:
        """Refuse to mix two runs in one folder."""
        if self.subcommand == "predict" and (self.run_folder / "changes.csv").exists():
            msg = f"{self.run_folder}: holds refined boxes already; choose another --name"
            raise BadInput(msg)
        if any((self.run_folder / "checkpoints").glob("*.ckpt")) and not resuming:
            more = f", or continue it with --resume {self.run_folder}"
            remedy = f"choose another --name{more if self.subcommand == 'fit' else ''}"
            msg = f"{self.run_folder}: a run of this name exists; {remedy}"
            raise BadInput(msg)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401 (Lightning's)
        """Add the logger and callbacks that every run has."""
        make_folder(self.run_folder)
        config = self._get(self.config_init, "trainer")
        if self.subcommand == "predict":
            kwargs["logger"] = config.logger or False
        elif config.logger in (None, True):
            kwargs["logger"] = EventLog(
                str(self.run_folder.parent),
                name="",
                version=self.run_folder.name,
                default_hp_metric=False,
            )
        own = self.config[self.subcommand]
        callbacks: list[pl.Callback] = [
            RunReport(self.run_folder),
            TensorBoardPictures(self._settings()),
            Throughput(),
        ]
        if self.subcommand == "predict":
            callbacks = [PredictionFiles(self.run_folder, own.max_shift, own.overwrite)]
        if self.subcommand == "fit":
            callbacks.append(StopBetweenSteps())
            kwargs["plugins"] = [AtomicCheckpointIO(), *_as_list(config.plugins)]
        else:
            kwargs["enable_checkpointing"] = False
            self.save_config_callback = None
        if self.subcommand == "fit" and config.enable_checkpointing is not False:
            self._kept = RunCheckpoint(self.run_folder / "checkpoints")
            callbacks.append(self._kept)
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
        return flatten({key: self.config_dump[key] for key in ("model", "data", "seed_everything")})

    def fit(self, model: OffsetModel, datamodule: CropDataModule) -> None:
        """Train, from a checkpoint on where one is given."""
        checkpoint = self.config[self.subcommand].ckpt_path
        self.trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint)

    def validate(self, model: OffsetModel, datamodule: CropDataModule) -> None:
        """Validate a trained model, with our own table too."""
        model.restore(self.config[self.subcommand].ckpt_path)
        self.trainer.validate(model, datamodule=datamodule, verbose=False)

    def test(self, model: OffsetModel, datamodule: CropDataModule) -> None:
        """Test a trained model, without Lightning's own table: ours says it."""
        model.restore(self.config[self.subcommand].ckpt_path)
        self.trainer.test(model, datamodule=datamodule, verbose=False)

    def predict(self, model: OffsetModel, datamodule: CropDataModule) -> None:
        """Refine the boxes of annotation files."""
        model.restore(self.config[self.subcommand].ckpt_path)
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)

    def after_fit(self) -> None:
        """Test the best checkpoint, or the model as it is where none was kept."""
        if self._get(self.config_init, "trainer").fast_dev_run:
            return
        self.trainer.test(
            self.model,
            datamodule=self.datamodule,
            ckpt_path=(self._kept.best_model_path or None) if self._kept else None,
            weights_only=True,
            verbose=False,
        )


class ReusableConfig(SaveConfigCallback):
    """Save the configuration without what belongs to this run only, so that it can be run again."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        config = config.clone()
        config.name = config.ckpt_path = None
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it into the run's folder, whole or not at all."""
        text = self.parser.dump(self.config, skip_none=False)
        write_atomically(Path(trainer.default_root_dir) / "config.yaml", text.encode())


@sigterm_raises()
def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is done, 1 diverged or crashed, 2 bad input, 130 interrupted, 143 terminated.

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
    with _plain_warnings():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
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
            parser_class=OneSentenceParser,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": "lightning-bbox",
                "description": "Move rough boxes onto their objects.",
                **{command: {"description": words} for command, words in COMMANDS.items()},
            },
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
    except (RunStopped, SIGTERMException, KeyboardInterrupt) as stop:
        return _stopped(stop, arguments)
    except (ValueError, OSError, MisconfigurationException, SystemExit) as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            return _stopped(leaving.__context__, arguments)
        if (refusal := _refusal(leaving)) is not None:
            sys.stderr.write(f"lightning-bbox: {' '.join(str(refusal).split())}\n")
            _remove_empty_run()
            return 2
        if isinstance(leaving, SystemExit):
            return int(leaving.code or 0)
        raise
    return 0


def _refusal(error: BaseException) -> Exception | None:
    """Return a refusal, ours, Lightning's or the disk's, from among the errors around it."""
    refusal = cause(error, BadInput, MisconfigurationException)
    unwritten = cause(error, OSError)
    if refusal is None and unwritten is not None and unwritten.errno in _CANNOT_WRITE:
        return cannot_write(Path(unwritten.filename or "the run's folder"), unwritten)
    return refusal


def _remove_empty_run() -> None:
    """Remove the folder of a run that was refused before it began: it holds only its settings."""
    folder = Path(os.environ.get("LIGHTNING_BBOX_RUN", "nowhere"))
    files = [*folder.iterdir()] if folder.is_dir() else []
    if files and all(path.name.startswith(("events.", "config.yaml")) for path in files):
        for path in files:
            path.unlink(missing_ok=True)
        folder.rmdir()


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value] * (value is not None)


def _stopped(stop: BaseException, arguments: Sequence[str]) -> int:
    terminated = isinstance(stop, SIGTERMException) or getattr(stop, "signum", 0) == signal.SIGTERM
    folder = os.environ.get("LIGHTNING_BBOX_RUN")
    remedy = f"; continue with fit --resume {folder}" if folder and "fit" in arguments else ""
    sys.stderr.write(f"lightning-bbox: {'terminated' if terminated else 'interrupted'}{remedy}\n")
    return 143 if terminated else 130


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Say warnings as refusals are said, without the line of code that they come from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"lightning-bbox: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _print_unless_told(failed: threading.ExceptHookArgs) -> None:
    """Print a thread's error, but not that of TensorBoard's writer: it hands it on as well."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in _CANNOT_WRITE):
        threading.__excepthook__(failed)


def _quieten() -> None:
    """Silence what Lightning says at every start; its warnings stay."""
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_unless_told
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
