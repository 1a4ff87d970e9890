"""Diagnosis: what its parts measure agrees with plain oracles, and planted faults are named."""

import json
import math
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_bbox
import lightning_bbox.insight.diagnosis.case as cases
from benchmarks.diagnose import RECIPES, take_picture
from lightning_bbox.cli.arguments import resolve
from lightning_bbox.cli.main import main
from lightning_bbox.cli.run import make as make_plainly
from lightning_bbox.core.messages import plain_warnings
from lightning_bbox.evaluation.intervals import Mean
from lightning_bbox.geometry.boxes import box_centers
from lightning_bbox.insight.diagnosis.case import Case
from lightning_bbox.insight.diagnosis.checks.attempts import attempt
from lightning_bbox.insight.diagnosis.checks.crops import check_crops
from lightning_bbox.insight.diagnosis.checks.labels import (
    about_the_middle,
    check_labels,
    mistakes,
)
from lightning_bbox.insight.diagnosis.checks.network import check_network
from lightning_bbox.insight.diagnosis.checks.optimisation import check_plan
from lightning_bbox.insight.diagnosis.checks.targets import check_targets
from lightning_bbox.insight.diagnosis.diagnose import FOUND, Diagnosis, Suspect, gain_of_twice
from lightning_bbox.insight.diagnosis.files import as_markdown, figures, sentence, write_diagnosis
from lightning_bbox.insight.diagnosis.findings import (
    CAUSES,
    Cure,
    Finding,
    Frame,
    between,
    spread_of,
    suspects,
)
from lightning_bbox.insight.diagnosis.reader import Offsets, Reader, features_of
from lightning_bbox.insight.diagnosis.trials import Recorder, Trials, gain
from tests.insight.planted import FAULTS, plant, write_data
from tests.insight.planted_data import Patches, write_patches
from tests.runs import SCENES

QUICK = [
    "--model=BoxRegressor",
    "--data=SceneDataModule",
    "--data.num_scenes=300",
    "--data.draws_per_epoch=1280",
    "--data.eval_draws=300",
    "--data.compile=false",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--model.backbone=ShallowConvNet",
    "--model.backbone.channels=[8,16]",
    "--model.backbone.fc=[32]",
]


def make(options):
    for name in lightning_bbox.__all__:  # a part goes by its name alone once it is imported
        getattr(lightning_bbox, name)
    with plain_warnings():
        warnings.simplefilter("ignore")  # what is said of bad parts is the checks' to tell
        return make_plainly(options)


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-bbox"])
    monkeypatch.setattr(cases, "TRAIN", 500)
    monkeypatch.setattr(cases, "HELD", 250)


@pytest.fixture
def case(few_draws):  # noqa: ARG001 (it acts)
    return Case(make(QUICK))


def by_check(findings):
    return {finding.check: finding for finding in findings}


class TestFindings:
    def test_the_strongest_of_each_cause_stays_and_the_fine_leave(self):
        weights = (("a", 0.4, "leak"), ("b", 0.9, "leak"), ("c", 0.7, "precision"))
        found = [Finding(name, weight=weight, cause=cause) for name, weight, cause in weights]
        found += [Finding("d", weight=0.2, cause="bad_init"), Finding("e", because="no reason")]
        assert {cause: each.check for cause, each in suspects(found).items()} == {
            "leak": "b",
            "precision": "c",
        }

    def test_verdicts(self):
        told = [Finding("x", weight=weight, cause="leak").verdict for weight in (0.1, 0.4, 0.7)]
        assert told == ["fine", "doubtful", "at fault"]
        assert Finding("x", weight=0.9, cause="leak", because="y").verdict == "not made"

    def test_evidence_falls_too(self):
        assert between(1.0, 4.0, 2.0) == 1.0
        assert between(5.0, 4.0, 2.0) == 0.0

    def test_the_spread_is_the_root_of_the_mean_variance(self):
        values = np.random.default_rng(0).normal(size=(50, 2)) * [1, 3]
        expected = math.sqrt(values.var(axis=0, ddof=1).mean())
        assert spread_of(torch.from_numpy(values)) == pytest.approx(expected)

    def test_every_cause_has_a_kind_and_words(self):
        assert all(cause.kind and cause.words for cause in CAUSES.values())
        assert {name for fault in FAULTS for name in fault.accepted} <= set(CAUSES)


class TestReader:
    def test_it_is_scikit_learns_ridge(self):
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(300, 40, generator=generator)
        targets = features[:, :2] + 0.1 * torch.randn(300, 2, generator=generator)
        reader = Reader(Offsets(features, targets))
        scaler = StandardScaler().fit(features.numpy())
        oracle = Ridge(reader.solution.lam).fit(
            scaler.transform(features.double().numpy()), targets.double().numpy()
        )
        fresh = torch.randn(20, 40, generator=generator)
        expected = oracle.predict(scaler.transform(fresh.double().numpy()))
        np.testing.assert_allclose(reader(fresh).numpy(), expected, atol=1e-6)

    def test_r2_is_by_coordinate(self):
        features = torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
        targets = torch.stack([features[:, 0], torch.randn(400)], dim=1)
        r2 = Reader(Offsets(features, targets)).r2(Offsets(features, targets))
        assert r2[0] > 0.99
        assert r2[1] < 0.2

    def test_pictures_learned_by_heart_are_not_taken_for_read(self):
        draws = np.random.default_rng(0)
        pictures, new = np.repeat(np.arange(40), 8), np.repeat(np.arange(40), 3)

        def seen_of(numbers):
            known, offsets = draws.normal(size=(40, 30)), draws.normal(size=(40, 2))
            features = known[numbers] + 0.05 * draws.normal(size=(len(numbers), 30))
            rows = (torch.from_numpy(each).float() for each in (features, offsets[numbers]))
            return Offsets(*rows, torch.from_numpy(numbers))

        train, val = seen_of(pictures), seen_of(new)
        by_pictures, by_rows = Reader(train), Reader(train._replace(pictures=None))
        assert by_pictures.solution.lam > 100 * by_rows.solution.lam
        assert float(by_pictures.r2(val).min()) > -0.1

    def test_crops_of_one_picture_are_held_out_one_by_one(self):
        features = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
        one = Offsets(features, features[:, :2], torch.zeros(200, dtype=torch.int64))
        assert float(Reader(one).r2(one).min()) > 0.99
        assert torch.equal(one.take(torch.arange(3)).pictures, one.pictures[:3])

    def test_brightness_and_contrast_change_no_feature(self):
        crops = torch.rand(4, 3, 45, 45, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(
            features_of(crops), features_of(0.3 + 0.5 * crops), atol=2e-2, rtol=0
        )

    def test_crops_of_any_side_give_as_many(self):
        shapes = {features_of(torch.rand(2, 3, side, side)).shape for side in (8, 45, 227)}
        assert len(shapes) == 1

    def test_it_reads_where_a_disc_lies(self):
        generator = torch.Generator().manual_seed(3)
        offsets = (torch.rand(600, 2, generator=generator) * 2 - 1) * 5
        places = torch.arange(45) + 0.5
        x, y = (places - 22.5 - offsets[:, axis, None] for axis in (0, 1))
        disc = (torch.hypot(x[:, None, :], y[:, :, None]) < 10).float()
        crops = 0.3 + 0.4 * disc[:, None].expand(-1, 3, -1, -1)
        seen = Offsets(features_of(crops), offsets)
        learn, held = torch.arange(400), torch.arange(400, 600)
        assert float(Reader(seen.take(learn)).r2(seen.take(held)).min()) > 0.95


class TestCase:
    def test_a_shifted_crop_has_another_offset(self, case):
        samples = case.train.take(torch.arange(20))
        shifts = torch.tensor([[1.0, -2.0]]).expand(20, 2)
        moved = case.offsets(case.recut(samples, shifts))
        torch.testing.assert_close(moved, case.offsets(samples) - shifts, atol=1e-4, rtol=0)

    def test_another_training_on_the_same_pictures_reads_nothing(self, case):
        again = Case(
            make([*QUICK, "--data.jitter=UniformJitter", "--data.jitter.shift=3"]), shared=case
        )
        assert again.data.source.store is case.data.source.store
        other = Case(make([*QUICK, "--data.kind=polar"]), shared=case)
        assert other.data.source.store is not case.data.source.store

    @pytest.mark.usefixtures("few_draws")
    def test_steps_are_those_that_lightning_would_make(self):
        planned = {
            (): 22 * 10,
            ("--trainer.max_epochs=3",): 30,
            ("--trainer.max_steps=7",): 7,
            ("--trainer.accumulate_grad_batches=5", "--trainer.max_epochs=3"): 6,
        }
        for options, steps in planned.items():
            assert Case(make([*QUICK, *options])).planned_steps == steps

    @pytest.mark.parametrize("name", ["swap", "mirror x", "mirror y", "mirror both"])
    def test_a_mistake_undone_twice_is_none(self, case, name):
        items = case.data.items_of("train")
        frame, alter = case.frame(items), mistakes(case)[name][1]
        sizes = frame.sizes
        assert bool((sizes[:, 0] == sizes[:, 1]).all())  # else a swap has other pictures
        torch.testing.assert_close(alter(alter(items.boxes, frame), frame), items.boxes)

    def test_given_offsets_are_mirrored_about_their_proposals(self, case):
        boxes = torch.tensor([[3.0, 4.0, 13.0, 24.0]])
        proposals = torch.tensor([[1.0, 1.0, 11.0, 21.0]])
        frame = Frame(torch.tensor([[50.0, 40.0]]), proposals)
        by = {"swap": [3.0, 2.0], "mirror x": [-2.0, 3.0], "mirror both": [-2.0, -3.0]}
        for name, expected in by.items():
            found = mistakes(case)[name][1](boxes, frame)
            off = box_centers(found) - box_centers(proposals)
            torch.testing.assert_close(off, torch.tensor([expected]))


class TestChecks:
    def test_nothing_is_wrong_with_scenes(self, case):
        checks = (check_labels, check_crops, check_targets, check_network, check_plan)
        found = [finding for check in checks for finding in check(case)]
        doubted = {finding.check: finding.found for finding in found if finding.verdict != "fine"}
        assert not doubted

    @pytest.mark.parametrize(
        ("options", "check", "cause"),
        [
            (
                ["--data.crop.context=1", "--data.jitter=UniformJitter", "--data.jitter.shift=15"],
                check_crops,
                "context_too_small",
            ),
            (["--data.crop.size=11"], check_crops, "object_too_small"),
            (["--data.augment.noise=4"], check_crops, "augmentation_destroys"),
            (["--model.head.max_shift=2"], check_targets, "bins_too_narrow"),
            (
                ["--model.head.bin_width=6", "--model.head.labels=OneHotLabels"],
                check_targets,
                "bins_too_coarse",
            ),
            (
                ["--model.head=LinearHead", "--model.codec=DeltaCodec"],
                check_targets,
                "unscaled_targets",
            ),
            (
                ["--model.head=LinearHead", "--model.head.activation=relu"],
                check_targets,
                "bounded_output",
            ),
            (["--model.backbone.global_pool=true"], check_network, "position_lost"),
            (["--data.batch_size=4"], check_network, "tiny_batch_norm"),
            (
                ["--model.backbone.batch_norm=false", "--model.backbone.init=ZeroInit"],
                check_network,
                "bad_init",
            ),
            (["--model.backbone.dropout=0.9"], check_network, "dropout_before_output"),
            (["--trainer.max_steps=20"], check_plan, "too_few_steps"),
            (
                ["--model.regularizers+=L2Penalty", "--model.regularizers.strength=3"],
                check_plan,
                "decay_too_strong",
            ),
            (
                [
                    "--model.optimizer=torch.optim.AdamW",
                    "--model.optimizer.lr=0.003",
                    "--model.optimizer.weight_decay=50",
                ],
                check_plan,
                "decay_too_strong",
            ),
        ],
    )
    @pytest.mark.usefixtures("few_draws")
    def test_an_option_that_does_harm_is_named(self, options, check, cause):
        head = ["--model.head=BinHead"] if any("model.head." in each for each in options) else []
        if any("=LinearHead" in each for each in options):
            head = []
        found = check(Case(make([*QUICK, *head, *options])))
        assert cause in suspects(list(found))


@pytest.mark.usefixtures("few_draws")
class TestCures:
    def test_a_cure_of_augmentation_leaves_none(self):
        noisy = [*QUICK, "--data.augment.noise=4", "--data.augment.flip_x=false"]
        cure = suspects(list(check_crops(Case(make(noisy)))))["augmentation_destroys"].cure
        mended = make([*noisy, *cure.options]).data.augment
        assert mended == lightning_bbox.Augment(flip_x=False)

    def test_a_cure_of_the_backbone_is_the_default_whatever_it_was(self):
        options = [*QUICK, "--model.backbone.channels=[8,8,8,8,8]", "--model.backbone.fc=[]"]
        cure = suspects(list(check_network(Case(make(options)))))["position_lost"].cure
        mended = make([*options, *cure.options]).model
        assert mended.net.backbone.recipe() == make([*QUICK[:-3]]).model.net.backbone.recipe()

    def test_a_head_of_maps_goes_with_its_backbone(self):
        options = [*QUICK, "--model.head=SoftArgmaxHead", "--model.backbone.fc=[]"]
        options += ["--model.backbone.kernel=1"]
        cure = suspects(list(check_network(Case(make(options)))))["receptive_field_small"].cure
        assert Case(make([*options, *cure.options])).model.net.head.recipe()["class_path"] == (
            "lightning_bbox.BinHead"
        )

    def test_a_cure_of_the_init_keeps_no_bias(self):
        options = [*QUICK, "--model.backbone.batch_norm=false", "--model.backbone.init=HeInit"]
        options += ["--model.backbone.init.bias=-10"]
        cure = suspects(list(check_network(Case(make(options)))))["dead_units"].cure
        assert make([*options, *cure.options]).model.net.backbone.init.bias == 0

    @pytest.mark.parametrize(
        ("context", "shift", "cause"),
        [(1, 27, "context_too_small"), (10, 0.75, "object_too_small")],
    )
    def test_a_cure_of_the_context_proposes_the_same_boxes(self, context, shift, cause):
        options = [*QUICK, f"--data.crop.context={context}", "--data.jitter=UniformJitter"]
        options += [f"--data.jitter.shift={shift}"]
        case = Case(make(options))
        mended = Case(make([*options, *suspects(list(check_crops(case)))[cause].cure.options]))
        torch.testing.assert_close(mended.train.proposals, case.train.proposals, atol=0.05, rtol=0)
        corners = mended.data.geometry.crop_boxes(mended.train.proposals)
        inside = (mended.train.gt_boxes[:, :2] > corners[:, :2]).all(dim=1)
        assert float(inside.float().mean()) > 0.95
        assert mended.data.geometry.context < 3

    @pytest.mark.parametrize(
        ("name", "cause"),
        [
            ("ScenesElsewhere", "crops_from_elsewhere"),
            ("ShakenScenes", "augmentation_moves_labels"),
        ],
    )
    def test_a_data_module_of_ones_own_is_tried_without_what_it_adds(self, name, cause):
        own = [*QUICK, f"--data=tests.insight.planted_parts.{name}", *QUICK[2:6]]
        cure = suspects(list(check_crops(Case(make(own)))))[cause].cure
        mended = make([*own, *cure.options]).data
        assert type(mended) is lightning_bbox.SceneDataModule
        assert mended.draws_per_epoch == make(own).data.draws_per_epoch == 1280

    def test_labels_off_by_a_constant_are_about_the_middle_once_it_is_undone(self, tmp_path):
        draws = np.random.default_rng(0)
        offsets = draws.uniform(-5, 5, (300, 2)) + np.array([1.0, -2.0])
        patches = draws.integers(0, 255, (300, 45, 45, 3), dtype=np.uint8)
        write_patches(Patches(patches, offsets, np.arange(300) // 2), tmp_path)
        words = ["--model=BoxRegressor", "--data=PatchDataModule", "--data.compile=false"]
        case = Case(make([*words, f"--data.file={tmp_path / 'patches.npz'}"]))
        items = case.data.items_of("train")
        mended = case.altered(items, about_the_middle(case))
        off = box_centers(mended.boxes) - box_centers(items.proposals)
        torch.testing.assert_close(off.mean(dim=0), torch.zeros(2), atol=1e-3, rtol=0)
        moved = box_centers(items.boxes) - box_centers(mended.boxes)
        assert float(moved.std(dim=0).max()) < 1e-3


class TestOutlook:
    def test_the_interval_is_that_of_a_paired_bootstrap_over_pictures(self):
        draws = np.random.default_rng(0)
        clusters = np.repeat(np.arange(40), 6)
        level = draws.gamma(4, 0.1, 40)[clusters]  # pictures differ, and both errors with them
        quarter = level * draws.gamma(8, 0.25, 240)
        whole = 0.7 * level * draws.gamma(8, 0.25, 240)
        found = gain_of_twice(*(torch.from_numpy(each) for each in (quarter, whole, clusters)))
        sums = np.stack([np.bincount(clusters, each) for each in (quarter, whole)])
        picked = sums[:, draws.integers(0, 40, (4000, 40))].sum(axis=2)
        ends = np.quantile(1 - np.sqrt(picked[1] / picked[0]), [0.025, 0.975])
        assert found.value == pytest.approx(1 - math.sqrt(whole.sum() / quarter.sum()))
        np.testing.assert_allclose([found.low, found.high], ends, atol=0.01)

    def test_it_covers_what_is_true(self):
        draws = np.random.default_rng(1)
        clusters = torch.arange(20).repeat_interleave(5)
        inside = 0
        for _ in range(400):
            level = draws.gamma(4, 0.25, 20)[clusters.numpy()]
            noise = draws.gamma(4, 0.25, (2, 100))
            whole, quarter = torch.from_numpy(level * noise * np.array([[0.81], [1.0]]))
            found = gain_of_twice(quarter, whole, clusters)
            inside += found.low <= 0.1 <= found.high
        assert 0.92 <= inside / 400 <= 0.98

    def test_one_picture_has_no_interval(self):
        errors = torch.tensor([1.0, 2.0, 1.5])
        found = gain_of_twice(errors, 0.64 * errors, torch.zeros(3, dtype=torch.int64))
        assert found.value == pytest.approx(0.2)
        assert math.isnan(found.low)


class TestTrials:
    def test_they_are_paired_and_repeat(self, case):
        trials = Trials(make_of(QUICK), case, steps=20, minutes=9)
        recorder = Recorder(20)
        one, trained = trials.run("one", recorder=recorder)
        again, _ = trials.run("again")
        torch.testing.assert_close(one.errors, again.errors, atol=0, rtol=0)
        assert gain(one, again).value == 0
        assert len(recorder.losses) == one.steps == 20
        assert recorder.unchanged
        assert sum(recorder.unchanged) / len(recorder.unchanged) < 0.1
        assert trained.model.spec is not None

    def test_a_training_that_diverges_is_told(self, case):
        trials = Trials(make_of(QUICK), case, steps=20, minutes=9)
        options = ["--model.head=LinearHead", "--model.optimizer=torch.optim.SGD"]
        trial, _ = trials.run("wild", [*options, "--model.optimizer.lr=1e30"])
        assert trial.diverged
        assert trial.error == 3.0

    def test_there_is_no_time_without_minutes(self, case):
        assert not Trials(make_of(QUICK), case, steps=20, minutes=0).has_time()


FAILING = {  # the part, what names it, which check it can't be made in, and whether one is
    "loss": (["--model.head=LinearHead", "--model.head.loss={}.FailingLoss"],
             "FailingLoss.penalty raises KeyError: 'no such penalty'", "the head by itself"),
    "head": (["--model.head={}.FailingHead"],
             "FailingHead.decode raises RuntimeError: shape", "the head by itself"),
    "backbone": (["--model.backbone={}.FailingConvNet", "--model.backbone.channels=[8]"],
                 "FailingConvNet.forward raises NotImplementedError: without a word",
                 "gradients through the network"),
    "shape": (["--model.backbone={}.FlatConvNet", "--model.backbone.channels=[8]"],
              "with tests.insight.failing_parts.FlatConvNet, ", "gradients through the network"),
    "codec": (["--model.codec={}.FailingCodec"],
              "FailingCodec.decode raises ZeroDivisionError", "the codec there and back"),
    "augmentation": (["--data.augment.extra=[{{class_path: {}.FailingBrightness}}]"],
                     "FailingBrightness.apply_transform raises ValueError: too bright",
                     "augmentation"),
    "data module": (["--data={}.FailingScenes"],
                    "FailingScenes.crops_of raises FileNotFoundError: no such file",
                    "labels can be read"),
    "schedule": (["--model.schedule={}.FailingSchedule"],
                 "FailingSchedule.factor raises IndexError: list index out of range", "schedule"),
    "optimizer": (["--model.optimizer={}.FailingSGD", "--model.optimizer.lr=0.1"],
                  "FailingSGD.step raises RuntimeError: no step", "a short training"),
}  # fmt: skip


@pytest.mark.usefixtures("few_draws")
class TestPartsThatRaise:
    @pytest.mark.parametrize("place", FAILING)
    def test_the_check_says_who_and_the_others_go_on(self, place, tmp_path):
        options, words, check = FAILING[place]
        given = [option.format("tests.insight.failing_parts") for option in options]
        run = [*QUICK, *given, "--minutes=0", "--steps=20", f"--runs={tmp_path}", "--name=run"]
        assert main(["diagnose", *run]) in (3, 4)
        told = json.loads((tmp_path / "run" / "diagnosis.json").read_text())
        verdicts = {each["name"]: each["verdict"] for each in told["checks"]}
        raised = {each["check"]: each for each in told["raised"]}
        assert words in raised[check]["sentence"]
        assert "failing_parts.py:" in raised[check]["sentence"] or place == "shape"
        assert "Traceback" in raised[check]["traceback"]
        assert {name for name, verdict in verdicts.items() if verdict == "can't be made"} == {
            *raised
        }
        assert "fine" in verdicts.values()
        assert words in (tmp_path / "run" / "diagnosis.md").read_text()
        assert "Traceback" in (tmp_path / "run" / "diagnosis.html").read_text()
        assert told["verdict"] in ("found", "incomplete")
        assert "checks can't be made" in told["sentence"]

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            ("--model.backbone={}.UnbuiltConvNet", "build raises ArithmeticError: a side of 45"),
            ("--model.head={}.UnmadeHead", "__init__ raises FileNotFoundError: no such file"),
        ],
    )
    def test_what_can_not_be_built_is_refused_in_a_sentence(self, option, words, tmp_path, capsys):
        given = option.format("tests.insight.failing_parts")
        assert main(["diagnose", *QUICK, given, f"--runs={tmp_path}"]) == 2
        said = capsys.readouterr().err
        assert "the training can't be built: tests.insight.failing_parts" in said
        assert words in said

    def test_an_error_of_ours_is_raised(self, case):
        def look(_case):
            raise KeyError

        with pytest.raises(KeyError):
            attempt("a check", look, case)


def make_of(options):
    return lambda added: make([*options, *added])


@pytest.mark.usefixtures("few_draws")
class TestCommand:
    def test_it_finds_nothing_and_says_so(self, tmp_path, capsys):
        words = [*QUICK, "--minutes=0", "--steps=60", f"--runs={tmp_path}", "--name=healthy"]
        assert main(["diagnose", *words]) == 0
        said = capsys.readouterr()
        assert "Nothing was found" in said.err + said.out
        told = json.loads((tmp_path / "healthy" / "diagnosis.json").read_text())
        assert told["verdict"] == "nothing found"
        assert told["outlook"]
        assert main(["diagnose", *words]) == 2  # there is something in the folder

    def test_it_names_a_cause_and_measures_its_cure(self, tmp_path):
        words = [*QUICK, "--model.head=BinHead", "--model.head.max_shift=1", "--minutes=9"]
        words += ["--steps=40", f"--runs={tmp_path}", "--name=narrow"]
        assert main(["diagnose", *words]) == 3
        folder = tmp_path / "narrow"
        told = json.loads((folder / "diagnosis.json").read_text())
        assert told["causes"][0]["name"] == "bins_too_narrow"
        assert told["causes"][0]["harm"]["low"] > 0
        assert "--model.head.max_shift=5" in told["sentence"]
        assert [trial["name"] for trial in told["trials"]][:2] == ["as it is", "cured"]
        page = (folder / "diagnosis.html").read_text()
        assert "The bins don&#x27;t reach as far as the shifts." in page
        events = EventAccumulator(str(folder)).Reload()
        assert "diagnosis/score/bins_too_narrow" in events.Tags()["scalars"]

    @pytest.mark.parametrize(("option", "word"), [("--minutes=-1", "minutes"), ("--steps=3", "20")])
    def test_what_makes_no_sense_is_refused(self, option, word, tmp_path, capsys):
        assert main(["diagnose", *QUICK, option, f"--runs={tmp_path}"]) == 2
        assert word in capsys.readouterr().err


def test_a_fit_that_hardly_learned_points_to_it(tmp_path, capsys):
    assert main([*SCENES, "--trainer.max_epochs=1", f"--runs={tmp_path}", "--name=run"]) == 0
    assert f"diagnose -c {tmp_path / 'run' / 'config.yaml'}" in capsys.readouterr().out


def one_found(score=0.8):
    crops = (("as they are", torch.rand(3, 3, 45, 45)),)
    finding = Finding("a check", "7 of 9", "none", 0.8, "leak", Cure(words="mend it"), crops=crops)
    suspect = Suspect("leak", finding, Mean(0.2, 0.1, 0.3, 9), score, "its cure was tried")
    return Diagnosis((finding,), (suspect,), (), None, (1.0, 2.0), "", "a.yaml")


class TestFiles:
    def test_a_score_below_the_mark_names_nothing(self):
        assert one_found().found
        assert not one_found(FOUND - 0.01).found
        assert "nothing was found" in sentence(one_found(FOUND - 0.01))

    def test_everything_is_in_every_file(self, tmp_path):
        found = one_found()
        write_diagnosis(found, tmp_path / "new")
        told = json.loads((tmp_path / "new" / "diagnosis.json").read_text())
        assert told == json.loads(json.dumps(figures(found)))
        assert told["causes"][0]["harm"] == {"value": 0.2, "low": 0.1, "high": 0.3}
        assert "20% (95 % interval 10% to 30%)" in as_markdown(found)
        assert (tmp_path / "new" / "diagnosis.html").read_text().count("<img") == 1


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_benchmark_diagnoses_is_a_training(name):
    words = [word.format(data="data") for word in RECIPES[name]]
    assert make(resolve(["diagnose", *words])[1:]).model.spec is None


@pytest.mark.skipif(shutil.which("chromium") is None, reason="takes a picture by chromium")
def test_a_page_has_a_picture(tmp_path):
    write_diagnosis(one_found(), tmp_path / "run")
    take_picture(tmp_path / "run" / "diagnosis.html", tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1200, 760)
        assert len(picture.getcolors()) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["boxes-xy-exchanged", "offsets-from-object-to-patch", "offsets-noisy", "rate-too-small",
     "decay-too-strong", "units-dead"],
)  # fmt: skip
def test_a_planted_fault_is_named_first(name, tmp_path):
    fault = next(each for each in FAULTS if each.name == name)
    folder = tmp_path / "case"
    folder.mkdir()
    write_data([fault], "scenes", folder)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(plant([fault], "scenes", folder).config, sort_keys=False))
    words = ["-c", str(config), "--minutes=0", "--steps=100", f"--runs={tmp_path}", "--name=told"]
    assert main(["diagnose", *words]) == 3
    told = json.loads((tmp_path / "told" / "diagnosis.json").read_text())
    assert told["causes"][0]["name"] in fault.accepted
