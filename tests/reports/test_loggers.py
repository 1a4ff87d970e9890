"""Every logger that Lightning ships is given settings, scalars, crops, charts and final tables.

CSV and TensorBoard are real. The others are stand-ins: Lightning's own loggers on clients that have
the names and arguments of wandb 0.2x, mlflow 3 and comet_ml 3, and remember what they are given.
"""

import csv
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from lightning.pytorch import loggers as lightnings
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_bbox.reports.loggers import LoggedReport, log_picture, log_table, log_text, shows
from tests.runs import SCENES, fit, frozen, scenes, trained_quietly

SETTINGS = {"model.head": "BinHead", "data.batch_size": 16}


class Client:
    """Remembers what it is given, by its kind and name."""

    def __init__(self):
        self.given, self.id = {}, "run"

    def keep(self, kind, name, value):
        self.given.setdefault((kind, name), []).append(value)


class WandbRun(Client):
    """wandb.Run: log, config."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(update=self.settle)

    def settle(self, given, allow_val_change=None):
        self.keep("settings", "", given)

    def log(self, data, step=None, commit=None):
        for name, value in data.items():
            kind = type(value[0]).__name__ if isinstance(value, list) else type(value).__name__
            self.keep(kind, name, value)


class WandbImage:
    def __init__(self, data_or_path, mode=None, caption=None):
        assert isinstance(data_or_path, Image.Image)


class WandbTable:
    def __init__(self, columns=None, data=None, rows=None, dataframe=None):
        assert all(len(row) == len(columns) for row in data)
        self.columns, self.data = columns, data


class MlflowClient(Client):
    """mlflow.tracking.MlflowClient, of one run."""

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        for each in metrics:
            self.keep("scalar", each.key, each.value)
        for each in params:
            self.keep("settings", each.key, each.value)

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None):
        assert isinstance(image, Image.Image)
        self.keep("picture", artifact_file, image)

    def log_text(self, run_id, text, artifact_file):
        self.keep("text", artifact_file, text)


class CometExperiment(Client):
    """comet_ml.OfflineExperiment."""

    def __internal_api__log_parameters__(self, parameters, framework, flatten_nested, source):
        self.keep("settings", "", parameters)

    def __internal_api__log_metrics__(self, dic, step, epoch, prefix, framework):
        for name, value in dic.items():
            self.keep("scalar", name, value)

    def __internal_api__set_model_graph__(self, graph, framework):
        self.keep("graph", framework, graph)

    def log_image(self, image_data, name=None, step=None):
        assert isinstance(image_data, Image.Image)
        self.keep("picture", name, step)

    def log_text(self, text, step=None, metadata=None):
        self.keep("text", metadata["name"], text)

    def log_table(self, filename, tabular_data=None, headers=False):
        self.keep("table", filename, [headers, *tabular_data])


def stand_in(kind, client):
    """Make one of Lightning's loggers on a client of ours."""

    def begin(self):
        lightnings.Logger.__init__(self)
        self._prefix, self._experiment, self._online = "", client, None
        self._run_id, self._log_batch_kwargs, self._step_metric = "run", {}, None
        self._checkpoint_callback, self._initialized, self._offline = None, False, True
        self._log_model, self._checkpoint_name, self._step = False, None, 0
        self._wandb_init, self._project = {}, None

    names = {
        "__init__": begin,
        "experiment": property(lambda _: client),
        "run_id": "run",
        "name": "stand-in",
        "version": "0",
        "save_dir": property(lambda _: None),
        "save": lambda _: None,
        "finalize": lambda *_: None,
    }
    return type(kind.__name__, (kind,), names)()


class Scalars(lightnings.Logger):
    """A logger of one's own."""

    name, version = "own", 0

    def __init__(self):
        super().__init__()
        self.seen, self.settings = set(), {}

    def log_metrics(self, metrics, step=None):
        self.seen |= set(metrics)

    def log_hyperparams(self, params):
        self.settings = params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that all loggers have watched at once."""
    folder = tmp_path_factory.mktemp("loggers")
    with pytest.MonkeyPatch.context() as patch:
        wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow.entities")
        wandb.Image, wandb.Table = WandbImage, WandbTable
        mlflow.Param = mlflow.Metric = SimpleNamespace
        patch.setitem(sys.modules, "wandb", wandb)
        patch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
        patch.setitem(sys.modules, "mlflow.entities", mlflow)
        clients = {"W&B": WandbRun(), "MLflow": MlflowClient(), "Comet": CometExperiment()}
        kinds = (lightnings.WandbLogger, lightnings.MLFlowLogger, lightnings.CometLogger)
        several = [
            lightnings.CSVLogger(folder, name="csv", version=""),
            lightnings.TensorBoardLogger(folder, name="events", version=""),
            Scalars(),
            *map(stand_in, kinds, clients.values()),
        ]
        data = scenes(draws_per_epoch=32, eval_draws=16)
        callbacks = [LoggedReport(SETTINGS)]
        options = {"max_epochs": 2, "log_every_n_steps": 1, "callbacks": callbacks}
        trainer = trained_quietly(frozen(backbone=None), data, logger=several, **options)
        trainer.test(trainer.lightning_module, datamodule=data, verbose=False)
    metrics = trainer.lightning_module.evaluations["test"].metrics
    return SimpleNamespace(folder=folder, clients=clients, own=several[2], metrics=metrics)


PICTURES = ("val/crops", "val/offsets", "test/crops")


def test_csv_has_them_as_files(run):
    folder = run.folder / "csv"
    settings = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert settings == SETTINGS
    assert {"val/mae_px", "train/loss", "test/mae_px"} <= set(next(rows(folder / "metrics.csv")))
    for name in ("val/crops-2", "val/crops-4", "val/offsets-4", "test/crops-0"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100
    table = dict(list(rows(folder / "test/metrics.csv"))[1:])
    assert float(table["mae_px"]) == run.metrics["mae_px"]
    assert next(rows(folder / "test/parts.csv")) == ["kind", "name", "draws", "mae_px"]
    assert "predict the mean" in (folder / "test/report.txt").read_text()


def rows(path):
    with path.open(newline="") as file:
        yield from csv.reader(file)


def test_tensorboard_has_them_and_histograms(run):
    events = EventAccumulator(str(run.folder / "events")).Reload()
    tags = events.Tags()
    assert {"val/crops", "test/crops"} <= set(tags["images"])
    assert {"val/offset_x_px/true", "val/error_px"} <= set(tags["histograms"])
    assert {"val/mae_px", "train/loss", "test/mae_px"} <= set(tags["scalars"])
    assert {"test/report/text_summary", "test/parts/text_summary"} <= set(tags["tensors"])


SAID = {
    "W&B": lambda kind, name: {"picture": ("WandbImage", name), "table": ("WandbTable", name),
                               "text": ("WandbTable", name), "scalar": ("float", name)}[kind],
    "MLflow": lambda kind, name: {"table": ("text", f"{name}.csv"), "text": ("text", f"{name}.txt"),
                                  "scalar": ("scalar", name)}.get(kind),
    "Comet": lambda kind, name: ("table", f"{name}.csv") if kind == "table" else (kind, name),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_each_service_has_them_by_its_own_means(name, run):
    given, where = run.clients[name].given, SAID[name]
    settings = {key: values[0] for (kind, key), values in given.items() if kind == "settings"}
    if name == "MLflow":  # a parameter each, as text
        assert settings == {key: str(value) for key, value in SETTINGS.items()}
    else:
        assert settings == {"": SETTINGS}
    for scalar in ("val/mae_px", "train/loss", "test/mae_px"):
        assert where("scalar", scalar) in given
    for table in ("test/metrics", "test/parts"):
        assert where("table", table) in given
    assert where("text", "test/report") in given
    for picture in PICTURES:
        kept = [key for kind, key in given if kind in ("picture", "WandbImage")]
        assert any(key.startswith(picture) for key in kept)


def test_a_logger_of_ones_own_has_scalars_and_settings(run):
    assert {"val/mae_px", "train/loss", "test/mae_px"} <= run.own.seen
    assert run.own.settings == SETTINGS


def test_every_logger_of_lightning_shows_or_is_told_not_to():
    kinds = [getattr(lightnings, name) for name in lightnings.__all__]
    kinds = {kind for kind in kinds if kind is not lightnings.Logger}
    shown = {kind for kind in kinds if shows(stand_in(kind, Client()))}
    assert kinds - shown == {lightnings.LitLogger}


def test_what_a_logger_does_not_show_is_told(capsys):
    trained_quietly(
        frozen(), scenes(), max_epochs=1, log_every_n_steps=1, logger=Scalars(),
        callbacks=[LoggedReport()],
    )  # fmt: skip
    said = capsys.readouterr()
    assert "Scalars is given scalars and settings; pictures are in" in said.out + said.err


def test_comet_that_is_switched_off_is_told(capsys):
    comet = stand_in(lightnings.CometLogger, CometExperiment())
    comet._online = False
    LoggedReport().on_train_start(
        SimpleNamespace(loggers=[comet], global_step=1), SimpleNamespace()
    )
    said = capsys.readouterr()
    assert "set COMET_START_ONLINE=0" in said.out + said.err


def test_the_adapter_leaves_other_loggers_alone():
    own = Scalars()
    log_picture(own, "a", Image.new("RGB", (4, 4)), 0)
    log_text(own, "a", "b", 0)
    log_table(own, "a", [("b",), (1,)], 0)
    assert own.seen == set()


def test_a_command_takes_several_loggers(tmp_path):
    loggers = tmp_path / "loggers.yaml"
    kind = "lightning.pytorch.loggers"
    loggers.write_text(
        "trainer:\n  logger:\n"
        f"  - {{class_path: {kind}.CSVLogger, init_args: {{save_dir: {tmp_path}/own}}}}\n"
        f"  - {{class_path: {kind}.TensorBoardLogger, init_args: {{save_dir: {tmp_path}/own}}}}\n"
    )
    fit(tmp_path, "run", f"--config={loggers}", "--trainer.max_epochs=1", base=SCENES)
    made = tmp_path / "own" / "lightning_logs" / "version_0"
    settings = yaml.safe_load((made / "hparams.yaml").read_text() or "{}")
    assert "val/mae_px" in next(rows(made / "metrics.csv"))
    assert (made / "test" / "crops-0.png").exists()
    assert isinstance(settings, dict)
    assert not list((tmp_path / "run").glob("events*"))


class Missing(lightnings.CSVLogger):
    """A logger whose package isn't installed, as Lightning's say it."""

    def __init__(self, save_dir: str = ".") -> None:
        msg = "Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb'`"
        raise ModuleNotFoundError(msg)


def test_a_logger_without_its_package_is_refused_in_a_sentence(refused, tmp_path):
    command = [*SCENES, f"--runs={tmp_path}", f"--trainer.logger={__name__}.Missing"]
    assert "Missing needs a package that isn't installed: Requirement 'wandb" in refused(command)
    assert not list(tmp_path.iterdir())
