"""How a command is carried out, and with which exit code it ends."""

import signal
from collections.abc import Sequence
from pathlib import Path
from traceback import walk_tb

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lightning_bbox
from lightning_bbox.cli.arguments import (
    COMMANDS,
    OF_TRAINED,
    asked_checkpoint,
    chosen_class,
    options,
    resolve,
)
from lightning_bbox.cli.commands import BoxCLI, Rehearsal, Unbuilt, Unmade
from lightning_bbox.cli.moved_keys import told, with_new_options
from lightning_bbox.cli.processes import default_devices, one_of_a_run, one_of_nodes, say_once
from lightning_bbox.cli.run_folders import Begun
from lightning_bbox.cli.wrong_options import OneSentenceParser, cause, lacking_package
from lightning_bbox.core.compiling import default_precision
from lightning_bbox.core.errors import CANNOT_WRITE, BadInput
from lightning_bbox.core.files import cannot_write
from lightning_bbox.core.memory import lacks_memory
from lightning_bbox.core.messages import plain_warnings, quietly
from lightning_bbox.core.recipes import find_class, trusting
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.insight.diagnosis.case import Made
from lightning_bbox.insight.probe import ProbingTrainer
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import checkpoint_of, class_path_in, read_checkpoint
from lightning_bbox.models.training.divergence import DivergedError
from lightning_bbox.models.training.stopping import RunStopped, sigterm_raises
from lightning_bbox.reports.callbacks import ReusableConfig, Settings

_MAYBE_REFUSALS = (
    ValueError,
    OSError,
    MisconfigurationException,
    RuntimeError,
    TypeError,
    OverflowError,
    MemoryError,
    ImportError,
    SystemExit,
)


@one_of_a_run()
@sigterm_raises()
def run(arguments: list[str]) -> int:
    """Run a command and return its exit code, as `main` does."""
    _import_public_names()
    with Begun() as begun, plain_warnings():
        try:
            return _carry_out(arguments, begun)
        except DivergedError as error:
            say_once(str(error))
            return 1
        except (RunStopped, SIGTERMException, KeyboardInterrupt) as stop:
            return _stopped(stop, arguments[0], begun)
        except _MAYBE_REFUSALS as leaving:
            return _left(leaving, arguments[0], begun)


def rehearse(arguments: list[str]) -> Settings:
    """Return the settings that a command would run with.

    Raises:
        BadInput: It would refuse them.
    """
    return _rehearsed(arguments).settings()


def prepare(arguments: list[str]) -> CropDataModule:
    """Return the data module that a command would have.

    Raises:
        BadInput: The command would be refused.
    """
    data: CropDataModule = _rehearsed(arguments).datamodule
    return data


def make(arguments: Sequence[str]) -> Made:
    """Return the training that `fit` would run with these options, neither built nor read.

    Raises:
        BadInput: It would be refused.
    """
    cli = _rehearsed(["fit", *arguments], Unbuilt)
    trainer = dict(cli.config["fit"].trainer)
    return Made(cli.model, cli.datamodule, trainer, cli.settings())


def option_parsers() -> dict[str, LightningArgumentParser]:
    """Return the parsers of the commands that LightningCLI runs, by name."""
    _import_public_names()
    words = ["fit", "--model=BoxRegressor", "--data=SceneDataModule", "--seed_everything=false"]
    with quietly():
        return dict(_rehearsed(words, Unmade)._subcommand_parsers)


def _rehearsed(arguments: list[str], kind: type[BoxCLI] = Rehearsal) -> BoxCLI:
    try:
        return _lightning_cli(kind, arguments, Begun())
    except _MAYBE_REFUSALS as leaving:
        if (refusal := _refusal(leaving)) is None:
            raise
        raise BadInput(str(refusal)) from leaving


def _import_public_names() -> None:
    """Import all parts: on a command line one goes by its name alone once it is imported."""
    for name in lightning_bbox.__all__:
        getattr(lightning_bbox, name)


def _carry_out(arguments: list[str], begun: Begun) -> int:
    if arguments[0] == "diagnose":
        from lightning_bbox.insight.diagnosis.command import run_diagnosis

        return run_diagnosis(resolve(arguments)[1:], make)
    if arguments[0] == "compare":  # runs fits of its own: LightningCLI has no part in it
        from lightning_bbox.studies.runs import compare

        compare(resolve(arguments)[1:], run, rehearse)
    elif arguments[0] == "audit":
        from lightning_bbox.insight.cross_fit import audit

        with one_of_nodes() as node:
            if node is not None:
                audit(resolve(arguments)[1:], run, rehearse, prepare, node)
    elif arguments[0] == "apply":
        from lightning_bbox.refinement.reviewing.apply import apply

        apply(arguments[1:])
    elif arguments[0] == "card":
        from lightning_bbox.refinement.sharing.command import card

        card(arguments[1:])
    elif arguments[0] == "serve":
        from lightning_bbox.refinement.serving.serve import serve

        serve(arguments[1:])
    elif arguments[0] == "export":
        from lightning_bbox.cli.exporting import export_command

        export_command(arguments[1:], prepare)
    elif arguments[0] == "check":
        from lightning_bbox.insight.check_files import check

        check(resolve(arguments)[1:], prepare)
    else:
        _lightning_cli(BoxCLI, arguments, begun)
    return 0


def _lightning_cli(cli: type[BoxCLI], arguments: list[str], begun: Begun) -> BoxCLI:
    words, moved = with_new_options(resolve(arguments))
    if moved:
        rank_zero_warn(told(moved))
    words = _with_trained_model(words)
    return cli(
        OffsetModel,
        CropDataModule,
        begun=begun,
        run=run,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=words,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=ReusableConfig,
        trainer_class=ProbingTrainer,
        parser_class=OneSentenceParser,
        parser_kwargs={
            "allow_abbrev": False,
            "prog": "lightning-bbox",
            **{
                name: {
                    "description": words,
                    "usage": f"lightning-bbox {name} [-c CONFIG ...] [options]",
                }
                for name, words in COMMANDS.items()
                if name in BoxCLI.subcommands()
            },
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


def _with_trained_model(words: list[str]) -> list[str]:
    """Name the model of the checkpoint to apply, where no model is named."""
    command, *given = words
    named = [*options(given)]
    asked = asked_checkpoint(named) if command in OF_TRAINED else None
    if asked is None or chosen_class("model", named):
        return words
    path = class_path_in(read_checkpoint(checkpoint_of(asked)))
    with trusting(()):  # the parser would import whatever it is
        find_class(path, OffsetModel, "the checkpoint")
    return [command, f"--model={path}", *given]


def _left(leaving: BaseException, command: str, begun: Begun) -> int:
    if isinstance(leaving.__context__, KeyboardInterrupt):
        return _stopped(leaving.__context__, command, begun)
    if (refusal := _refusal(leaving)) is not None:
        say_once(str(refusal))
        begun.undo()
        return 2
    if isinstance(leaving, SystemExit):
        return int(leaving.code or 0)
    raise leaving


def _refusal(error: BaseException) -> Exception | None:
    """Return a refusal, ours, Lightning's or the disk's, from among the errors around it."""
    if lacks_memory(error):
        return _too_large(error)
    refusal: Exception | None = cause(error, BadInput, MisconfigurationException)
    if refusal is None and _is_lightnings(error):
        return BadInput(f"trainer: {' '.join(str(error).split())}")
    refusal = refusal or lacking_package(error)
    unwritten = cause(error, OSError)
    if refusal is None and unwritten is not None and unwritten.errno in CANNOT_WRITE:
        return cannot_write(Path(unwritten.filename or "the run's folder"), unwritten)
    return refusal


def _is_lightnings(error: BaseException) -> bool:
    """Tell whether Lightning raised an error in code of its own: then it is a refusal."""
    if not isinstance(error, ValueError | RuntimeError | ImportError):
        return False
    names = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    return names[-1].startswith("lightning.")


def _too_large(error: BaseException) -> BadInput:
    said, *_ = str(error).splitlines() or [""]  # what follows are frames of C++
    problem = f"there is too little for what was asked ({said[-200:] or type(error).__name__})"
    remedy = (
        "lower data.batch_size or the sizes of the model, or keep pictures elsewhere (data.store)"
    )
    return BadInput.at("memory", problem, remedy)


def _stopped(stop: BaseException, command: str, begun: Begun) -> int:
    terminated = isinstance(stop, SIGTERMException) or getattr(stop, "signum", 0) == signal.SIGTERM
    remedy = ""
    if command == "fit" and begun.folder is not None and (begun.folder / "config.yaml").is_file():
        remedy = f"; continue with fit --resume {begun.folder}"
    elif command in ("compare", "audit"):
        remedy = "; the same command goes on"
    say_once(f"{'terminated' if terminated else 'interrupted'}{remedy}")
    return 143 if terminated else 130
