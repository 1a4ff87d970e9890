"""What a run of a study left is read with the settings that made it, or refused in a sentence."""

import json
import shutil

import numpy as np
import pytest

from lightning_bbox.core.errors import BadInput
from lightning_bbox.studies.results import read_result, refuse_other_settings
from lightning_bbox.studies.study import Arm, Run

RUN = Run(Arm("base"), 0)
SETTINGS = {"trainer.max_steps": 4, "model": "BoxRegressor"}
METRICS = {
    "test/mae_px": 1.5,
    "val/curve": [[4, 2.0]],
    "val/fraction_curve": [[4, 0.07]],
    "settings": SETTINGS,
}
OUTCOME = {"status": "diverged", "step": 3, "detail": "the loss is inf", "settings": SETTINGS}
CONFIG = "trainer: {max_steps: 4, devices: 1}\nmodel: {class_path: lightning_bbox.BoxRegressor}\n"


def finished(folder, **changes):
    (folder / "metrics.json").write_text(json.dumps(METRICS | changes))
    errors = {"error_px": np.array([[1.0, -2.0]]), "error_fraction": np.array([[0.05, 0.05]])}
    np.savez(folder / "test_errors.npz", **errors, picture=np.array([7]))
    return folder


def diverged(folder, **changes):
    (folder / "outcome.json").write_text(json.dumps(OUTCOME | changes))
    return folder


def stopped(folder):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def test_a_finished_run_is_read_in_px_and_in_fractions(tmp_path):
    result = read_result(RUN, finished(tmp_path))
    assert (result.status, result.metrics) == ("done", {"test/mae_px": 1.5})
    assert (result.curve, result.fraction_curve) == ([(4, 2.0)], [(4, 0.07)])
    assert result.errors.tolist() == [1.5]
    assert result.fractions.tolist() == pytest.approx([0.05])
    assert result.pictures.tolist() == [7]


@pytest.mark.parametrize("left", [finished, diverged, stopped])
def test_whatever_is_left_of_a_run_is_refused_for_other_settings(left, tmp_path):
    result = read_result(RUN, left(tmp_path))
    assert result.settings == SETTINGS
    refuse_other_settings(result, tmp_path, dict(SETTINGS))
    with pytest.raises(BadInput) as refusal:
        refuse_other_settings(result, tmp_path, {"trainer.max_steps": 8, "model": "BoxRegressor"})
    assert str(refusal.value) == (
        f"{tmp_path}: was run with other settings (trainer.max_steps 4, now 8); give the study "
        f"another --name, or remove its runs"
    )
    with pytest.raises(BadInput, match=r"\(trainer.max_steps 4, now unset\)"):
        refuse_other_settings(result, tmp_path, {"model": "BoxRegressor"})


def test_what_is_not_there_or_never_began_may_be_run_by_any_settings(tmp_path):
    assert read_result(RUN, tmp_path / "none").settings is None
    refused = read_result(RUN, diverged(tmp_path, status="refused", settings={}))
    refuse_other_settings(refused, tmp_path, SETTINGS)
    stopped(tmp_path)
    assert read_result(RUN, tmp_path).settings == SETTINGS


def test_results_that_do_not_say_what_made_them_are_refused(tmp_path):
    result = read_result(RUN, finished(tmp_path, settings={}))
    with pytest.raises(BadInput, match="don't say by which settings they were made"):
        refuse_other_settings(result, tmp_path, SETTINGS)


BAD_METRICS = ("", "[]", "{}", '{"val/curve": [[1e999, 1]]}', "\0", "[" * 100_000)
BAD_OUTCOMES = ("{", '{"status": "well", "detail": "", "step": 1}')


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("metrics.json", text) for text in (*BAD_METRICS, '{"a": 1' + "0" * 400 + "}")),
        *(("outcome.json", text) for text in BAD_OUTCOMES),
        *(("test_errors.npz", text) for text in ("", "PK\x03\x04", None)),
    ],
    ids=range(12),
)
def test_a_damaged_result_is_refused_in_one_sentence(name, content, tmp_path):
    finished(tmp_path)
    if content is None:
        np.savez(tmp_path / name, error_px=np.zeros((3, 2)), picture=np.zeros(2))
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match="remove its folder, so that the run is made again") as found:
        read_result(RUN, tmp_path)
    assert str(found.value).startswith(f"{tmp_path / name}: can't be read (")


def test_a_stopped_run_without_its_settings_is_refused(tmp_path):
    stopped(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(BadInput, match=r"config.yaml: can't be read"):
        read_result(RUN, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert read_result(RUN, tmp_path).settings is None
