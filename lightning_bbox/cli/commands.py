"""The commands fit, validate, test, predict and probe, built on LightningCLI."""

import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_bbox.annotations.write import Decimals
from lightning_bbox.cli.arguments import OPTIONS_OF
from lightning_bbox.cli.processes import (
    PATIENCE,
    end_launched,
    refuse_other_count,
    shared_by_launched,
)
from lightning_bbox.cli.run_folders import Begun
from lightning_bbox.cli.second_look import SecondLook, refuse_second, train_second
from lightning_bbox.cli.wrong_options import OneSentenceParser
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded
from lightning_bbox.core.messages import say
from lightning_bbox.core.recipes import find_class
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.geometry.codecs import OffsetSpec
from lightning_bbox.insight.check import FirstLines
from lightning_bbox.insight.probe import ProbingTrainer
from lightning_bbox.insight.report import save_readings
from lightning_bbox.models.advice import refuse_equal_passes
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import AtomicCheckpointIO, RunCheckpoint
from lightning_bbox.models.training.stopping import StopBetweenSteps
from lightning_bbox.refinement.predictions import PredictionFiles
from lightning_bbox.refinement.reviewing.review_page import MOST_REVIEWED
from lightning_bbox.reports.callbacks import (
    PlainProgress,
    RunReport,
    Settings,
    Throughput,
    settings_of,
)
from lightning_bbox.reports.loggers import EventLog, LoggedReport

_OWN = {"help", "config", "name", "runs", "ckpt_path"}
_OTHERS = (
    "--data.root DIR names the folder of the data set. All options of fit may be given too: "
    "`lightning-bbox fit --help` lists them."
)
HARDLY_BETTER = 0.8
"""Share of predict-mean's error above which a training has hardly learned anything."""


class BoxCLI(LightningCLI):
    """LightningCLI with a run folder, our trainer defaults, and a test at the end of `fit`."""

    run_folder: Path
    _kept: RunCheckpoint | None = None

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 (passed on)
        begun: Begun,
        run: Callable[[list[str]], int],
        **kwargs: Any,  # noqa: ANN401 (passed on)
    ) -> None:
        self.begun, self._run = begun, run
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands and what of the trainer's arguments isn't an option, or not as is."""
        unused = {"ckpt_path", "weights_only", "verbose", "return_predictions"}
        own = {"probe": {"model", "datamodule"}}
        return {name: skip | unused for name, skip in (LightningCLI.subcommands() | own).items()}

    def _prepare_subcommand_parser(
        self,
        klass: type,
        subcommand: str,
        **kwargs: Any,  # noqa: ANN401 (Lightning's)
    ) -> LightningArgumentParser:
        """Add what `predict` alone takes; tell all options for `fit`, for others their own."""
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
            parser.add_argument(
                "--law",
                type=str,
                default="auto",
                help="how the boxes are off: auto learns it from them all, so that those that are "
                "right stay, or takes the model's own where they are fewer than fifty, as own "
                "does; trained takes it to be what the model was trained on; or a law.json",
            )
            parser.add_argument(
                "--decimals",
                type=Decimals,
                default="auto",
                help="decimals of a pixel that are written: auto is none in files that hold only "
                "whole numbers, and otherwise 3",
            )
            parser.add_argument(
                "--review",
                type=NonNegativeInt,
                default=MOST_REVIEWED,
                help="how many boxes review.html may have, the likeliest wrong; some 6 kB each, "
                "0 for no page",
            )
        if subcommand == "fit":
            groups = parser._action_groups
            assert isinstance(groups, list)
            groups.sort(key=lambda group: str(group.title).startswith("Lightning's Trainer"))
        else:
            assert isinstance(parser, OneSentenceParser)
            parser.own_options = _OWN | set(OPTIONS_OF.get(subcommand, ()))
            parser.epilog = _OTHERS
            (checkpoint,) = (each for each in parser._actions if each.dest == "ckpt_path")
            checkpoint.help = "the run to apply: its folder, or one of its checkpoints"
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
            help="checkpoint to apply, or for fit to go on from: the folder of a run, a file, or "
            "last or best of the run of this name; `fit --resume FOLDER` goes on with all of a "
            "run's own",
        )
        parser.add_argument(
            "--second",
            type=SecondLook | None,
            help="have fit train a second stage too, which looks again where the first says that a "
            "box is; other commands take what the checkpoint holds",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration: a checkpoint's own settings never replace what was asked for."""

    def before_instantiate_classes(self) -> None:
        """Settle on the run's length and folder."""
        self._settle_length()
        config = self.config[self.subcommand]
        folder = expanded(config.runs) / (config.name or default_name(config))
        self.run_folder = folder if config.name else shared_by_launched(folder)
        config.ckpt_path = self.begun.begin(str(self.subcommand), self.run_folder, config.ckpt_path)

    def _settle_length(self) -> None:
        config = self.config[self.subcommand]
        if config.trainer.max_epochs is None:
            model = find_class(config.model.class_path, OffsetModel, "model")
            config.trainer.max_epochs = model.default_epochs

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401 (Lightning's)
        """Add the logger and callbacks that every run has."""
        config = self._get(self.config_init, "trainer")
        if config.barebones:
            msg = (
                "trainer.barebones: a run of the command line logs and keeps checkpoints; leave it "
                "out, or train in Python by Trainer(barebones=True)"
            )
            raise BadInput(msg)
        if self.subcommand == "predict":
            kwargs["logger"] = config.logger or False
        elif config.logger in (None, True):
            kwargs["logger"] = EventLog(
                str(self.run_folder.parent),
                name="",
                version=self.run_folder.name,
                default_hp_metric=False,
            )
        own, own_callbacks = self.config[self.subcommand], _as_list(config.callbacks)
        callbacks: list[pl.Callback] = [
            RunReport(self.run_folder, self.settings()),
            LoggedReport(self._hyperparameters()),
            Throughput(),
        ]
        if self.subcommand == "predict":
            callbacks = [
                PredictionFiles(
                    self.run_folder,
                    own.max_shift,
                    own.overwrite,
                    own.law,
                    own.decimals,
                    own.review,
                )
            ]
        callbacks += [FirstLines()] * (self.subcommand == "fit")
        callbacks.append(StopBetweenSteps())
        if self.subcommand == "probe" and config.devices == "auto":
            kwargs["devices"] = 1
        kwargs["plugins"] = [AtomicCheckpointIO(), *_as_list(config.plugins)]
        if self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
            self.save_config_callback = None
        if self.subcommand == "fit" and config.enable_checkpointing is not False:
            self._kept = RunCheckpoint(self.run_folder / "checkpoints")
            callbacks.append(self._kept)
        if config.enable_progress_bar is None:
            asked = any(isinstance(each, pl.callbacks.ProgressBar) for each in own_callbacks)
            kwargs["enable_progress_bar"] = asked or sys.stderr.isatty()
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

    def settings(self) -> Settings:
        """Return what makes the run what it is."""
        self._dump_config()
        return settings_of(self.config_dump)

    def _hyperparameters(self) -> dict[str, Any]:
        """Return the model's and data's configuration by dotted name, for the hparams view."""
        return {k: v for k, v in self.settings().items() if not k.startswith("trainer.")}

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it, and let nothing it began outlive it."""
        patience = 0.0
        try:
            super()._run_subcommand(subcommand)
            patience = PATIENCE
        finally:
            end_launched(self.trainer, patience)
            for logger in self.trainer.loggers:
                if isinstance(logger, EventLog):
                    logger.close()

    def fit(self, model: OffsetModel, datamodule: CropDataModule) -> None:
        """Train, from a checkpoint on where one is given.

        Raises:
            BadInput: A second look is asked for where there can be none.
        """
        if (second := self._second()) is not None:
            refuse_second(second, self.trainer, datamodule, kept=self._kept is not None)
        checkpoint = self.config[self.subcommand].ckpt_path
        self.trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint)

    def _second(self) -> SecondLook | None:
        asked: SecondLook | None = self._get(self.config_init, "second")
        return asked

    def validate(self, model: OffsetModel, datamodule: CropDataModule) -> None:
        """Validate a trained model, and keep how it errs where its checkpoint doesn't say yet."""
        model.restore(self.config[self.subcommand].ckpt_path)
        known = _measured(model)
        self.trainer.validate(model, datamodule=datamodule, verbose=False)
        if any(now and not was for was, now in zip(known, _measured(model), strict=True)):
            path = self.run_folder / "checkpoints" / "best.ckpt"
            self.trainer.save_checkpoint(path, weights_only=True)
            say(f"how the model errs, and its own law of boxes, are kept with it in {path}")

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
        table = save_readings(readings, self.run_folder, self.trainer.loggers)
        sys.stdout.write(f"\n{table}\n\nthe same in {self.run_folder}, drawn in probe.png\n")

    def after_fit(self) -> None:
        """Test the best checkpoint, or the model as it is where none was kept."""
        if self._get(self.config_init, "trainer").fast_dev_run:
            return
        best = (self._kept.best_model_path or None) if self._kept else None
        if (second := self._second()) is not None:
            assert best is not None
            self._dump_config()
            arguments = self.model, Path(best), self.run_folder, self.config_dump, self._run
            train_second(second, *arguments)
        self.trainer.test(
            self.model,
            datamodule=self.datamodule,
            ckpt_path=best,
            weights_only=True,
            verbose=False,
        )
        tested = self.model.evaluations["test"].metrics
        if tested["mae_px"] > HARDLY_BETTER * tested["mae_px_predict_mean"]:
            say(
                f"the error is {tested['mae_px'] / tested['mae_px_predict_mean']:.0%} of "
                f"predict-mean's: `lightning-bbox diagnose -c {self.run_folder / 'config.yaml'}` "
                f"looks for what keeps it from learning"
            )


class Rehearsal(BoxCLI):
    """Read the settings and make the parts they name; run nothing, leave nothing."""

    def before_instantiate_classes(self) -> None:
        """Settle on the run's length; leave its folder alone."""
        self._settle_length()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401 (Lightning's)
        """Do without what a run keeps."""
        return pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)

    def _run_subcommand(self, subcommand: str) -> None:
        """Build the model as far as it needs no data."""
        geometry, jitter = self.datamodule.geometry, self.datamodule.jitter
        spec = OffsetSpec(geometry, self.datamodule.num_targets, *jitter.bounds(geometry))
        self.model.build(spec, seed=0)
        refuse_equal_passes(self.model.net, self.model.passes or 0)


class Unbuilt(Rehearsal):
    """Read the settings and make the parts they name, and leave them as they are made."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""


class Unmade(Unbuilt):
    """Read the settings, and make nothing."""

    def instantiate_classes(self) -> None:
        """Do nothing."""


def _measured(model: OffsetModel) -> tuple[object, object, object]:
    """Return what a validation measures of how a model errs: what older checkpoints lack."""
    reliability = model.reliability
    return reliability, model.range, reliability.common if reliability else None


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value] * (value is not None)


def default_name(config: Namespace) -> str:
    """Name a run after its first config (a saved one: after the run it came from) and the time."""
    files = config.get("config") or []
    first = Path(str(files[0])) if files else Path("run")
    stem = first.resolve().parent.name if first.name == "config.yaml" else first.stem
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
