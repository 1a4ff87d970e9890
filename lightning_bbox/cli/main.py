"""The command line: `lightning-bbox fit|validate|test|predict|probe`, built on LightningCLI."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse.typing import PositiveFloat
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lightning_bbox
from lightning_bbox.cli.arguments import default_name, default_precision, resolve
from lightning_bbox.cli.options import OneSentenceParser, cause
from lightning_bbox.cli.ranks import (
    PATIENCE,
    default_devices,
    end_launched,
    one_of_a_run,
    refuse_other_count,
    say_once,
)
from lightning_bbox.cli.run_folders import begin_run, remove_empty_run
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import CANNOT_WRITE, cannot_write, make_folder
from lightning_bbox.core.messages import plain_warnings
from lightning_bbox.core.recipes import find_class, flatten
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.geometry.codecs import OffsetSpec
from lightning_bbox.insight.probe import ProbingTrainer, save_readings
from lightning_bbox.models.advice import refuse_equal_passes
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import AtomicCheckpointIO, RunCheckpoint
from lightning_bbox.models.divergence import DivergedError
from lightning_bbox.models.stopping import RunStopped, StopBetweenSteps, sigterm_raises
from lightning_bbox.refinement.predictions import PredictionFiles
from lightning_bbox.reports.callbacks import (
    EventLog,
    PlainProgress,
    ReusableConfig,
    RunReport,
    TensorBoardPictures,
    Throughput,
)
from lightning_bbox.studies.runs import compare

COMMANDS = {
    "fit": "Train a model, and test its best checkpoint.",
    "validate": "Measure a trained model on the validation split.",
    "test": "Measure a trained model on the test split.",
    "predict": "Refine the boxes of annotation files with a trained model.",
    "probe": "Show where in a network, trained or not, the offset can be read linearly.",
}
_COMPARE = "Measure configurations against each other, as a study's file says."


class BoxCLI(LightningCLI):
    """LightningCLI with a run folder, our trainer defaults, and a test at the end of `fit`."""

    run_folder: Path
    _kept: RunCheckpoint | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands and what of the trainer's arguments isn't an option, or not as is."""
        unused = {"ckpt_path", "weights_only", "verbose", "return_predictions"}
        own = {"probe": {"model", "datamodule"}}
        return {name: skip | unused for name, skip in (LightningCLI.subcommands() | own).items()}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:  # noqa: ANN401
        """Say in the help what the commands do here."""
        super()._add_subcommands(parser, **kwargs)
        (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        for command in commands._choices_actions:
            command.help = COMMANDS[command.dest]
        study = argparse._SubParsersAction._ChoicesPseudoAction("compare", (), _COMPARE)
        commands._choices_actions.append(study)

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
                help="leave boxes with an edge that would move farther, in px (a 45th of the crop)",
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
        """Settle on the run's length and folder."""
        config = self.config[self.subcommand]
        if config.trainer.max_epochs is None:
            model = find_class(config.model.class_path, OffsetModel, "model")
            config.trainer.max_epochs = model.default_epochs
        launched = None if config.name else os.environ.get("LIGHTNING_BBOX_RUN")
        name = config.name or default_name(config)
        self.run_folder = Path(launched or Path(config.runs) / name)
        os.environ["LIGHTNING_BBOX_RUN"] = str(self.run_folder)
        config.ckpt_path = begin_run(str(self.subcommand), self.run_folder, config.ckpt_path)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401 (Lightning's)
        """Add the logger and callbacks that every run has."""
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined] # Lightning sets it
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
        callbacks.append(StopBetweenSteps())
        if self.subcommand == "probe" and config.devices == "auto":
            kwargs["devices"] = 1
        if self.subcommand == "fit":
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
        refuse_other_count(trainer)
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

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it, and let nothing it began outlive it."""
        patience = 0.0
        try:
            super()._run_subcommand(subcommand)
            patience = PATIENCE
        finally:
            end_launched(self.trainer, patience)
            if isinstance(self.trainer.logger, EventLog):
                self.trainer.logger.close()

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

    def probe(
        self,
        model: OffsetModel,
        datamodule: CropDataModule,
        **options: Any,  # noqa: ANN401 (those of ProbingTrainer.probe)
    ) -> None:
        """Read the offset off every layer, and leave table and chart."""
        if (checkpoint := self.config[self.subcommand].ckpt_path) is not None:
            model.restore(checkpoint)
        assert isinstance(self.trainer, ProbingTrainer)
        readings = self.trainer.probe(model, datamodule, **options)
        table = save_readings(readings, self.run_folder, self.trainer.logger)
        sys.stdout.write(f"\n{table}\n\nthe same in {self.run_folder}, drawn in probe.png\n")

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


@one_of_a_run()
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
    for name in lightning_bbox.__all__:  # a part goes by its name alone once it is imported
        getattr(lightning_bbox, name)
    with plain_warnings():
        return _run(arguments)


class Rehearsal(BoxCLI):
    """Read the settings and make the parts they name; run nothing, leave nothing."""

    def before_instantiate_classes(self) -> None:
        """Leave the run's folder alone."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401 (Lightning's)
        """Do without what a run keeps."""
        return pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)

    def _run_subcommand(self, subcommand: str) -> None:
        """Build the model as far as it needs no data."""
        geometry, jitter = self.datamodule.geometry, self.datamodule.jitter
        spec = OffsetSpec(geometry, self.datamodule.num_targets, *jitter.bounds(geometry))
        self.model.build(spec, seed=0)
        refuse_equal_passes(self.model.net, self.model.passes or 0)


def rehearse(arguments: list[str]) -> str | None:
    """Return why a command would refuse its settings, None where it would begin.

    Examples:
        >>> with plain_warnings():
        ...     rehearse(["fit", "-c", "preset:quickstart", "--model.head=BoxHead"])
        "model.head: is 'BoxHead'; expected ..."
    """
    try:
        _command(arguments, Rehearsal)
    except (ValueError, OSError, MisconfigurationException, SystemExit) as leaving:
        if (refusal := _refusal(leaving)) is None:
            raise
        return str(refusal)
    return None


def _command(arguments: list[str], cli: type[BoxCLI] = BoxCLI) -> None:
    """Run a command; `compare` takes no model or data, so that LightningCLI has no part in it."""
    if arguments[:1] == ["compare"]:
        compare(resolve(arguments)[1:], main, rehearse)
        return
    cli(
        OffsetModel,
        CropDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=resolve(arguments),
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=ReusableConfig,
        trainer_class=ProbingTrainer,
        parser_class=OneSentenceParser,
        parser_kwargs={
            "allow_abbrev": False,
            "prog": "lightning-bbox",
            "description": "Move rough boxes onto their objects.",
            **{command: {"description": words} for command, words in COMMANDS.items()},
        },
        trainer_defaults={
            "devices": default_devices(),
            "precision": default_precision(),
            "log_every_n_steps": 50,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        },
    )


def _run(arguments: list[str]) -> int:
    try:
        _command(arguments)
    except DivergedError as error:
        say_once(str(error))
        return 1
    except (RunStopped, SIGTERMException, KeyboardInterrupt) as stop:
        return _stopped(stop, arguments)
    except (ValueError, OSError, MisconfigurationException, SystemExit) as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            return _stopped(leaving.__context__, arguments)
        if (refusal := _refusal(leaving)) is not None:
            say_once(str(refusal))
            if "--resume" not in " ".join(arguments):  # what is resumed keeps its settings
                remove_empty_run(Path(os.environ.get("LIGHTNING_BBOX_RUN", "nowhere")))
            return 2
        if isinstance(leaving, SystemExit):
            return int(leaving.code or 0)
        raise
    return 0


def _refusal(error: BaseException) -> Exception | None:
    """Return a refusal, ours, Lightning's or the disk's, from among the errors around it."""
    refusal = cause(error, BadInput, MisconfigurationException)
    unwritten = cause(error, OSError)
    if refusal is None and unwritten is not None and unwritten.errno in CANNOT_WRITE:
        return cannot_write(Path(unwritten.filename or "the run's folder"), unwritten)
    return refusal


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value] * (value is not None)


def _stopped(stop: BaseException, arguments: Sequence[str]) -> int:
    terminated = isinstance(stop, SIGTERMException) or getattr(stop, "signum", 0) == signal.SIGTERM
    folder = os.environ.get("LIGHTNING_BBOX_RUN")
    remedy = f"; continue with fit --resume {folder}" if folder and "fit" in arguments else ""
    remedy = "; the same command goes on" if arguments[:1] == ["compare"] else remedy
    say_once(f"{'terminated' if terminated else 'interrupted'}{remedy}")
    return 143 if terminated else 130
