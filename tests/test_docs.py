"""What README and docs say can be done as they say it: commands, snippets, configs, links."""

import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

import lightning_bbox
from lightning_bbox.cli.arguments import resolve
from lightning_bbox.cli.exporting import export_parser
from lightning_bbox.cli.main import main
from lightning_bbox.cli.run import rehearse
from lightning_bbox.core.messages import plain_warnings, quietly
from lightning_bbox.insight.check_files import check_parser
from lightning_bbox.insight.cross_fit import audit_parser
from lightning_bbox.insight.diagnosis.command import diagnose_parser
from lightning_bbox.refinement.reviewing.apply import apply_parser
from lightning_bbox.refinement.serving.serve import serve_parser
from lightning_bbox.refinement.sharing.command import card_parser
from lightning_bbox.studies.runs import compare_parser
from lightning_bbox.studies.study_file import read_study
from tests import annotation_files, notebooks
from tests.conftest import ROOT, write_rectangles
from tests.runs import TINY, fit

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FORMATS = ("voc", "coco", "yolo", "csv")
ELSEWHERE = ("pip", "python3", "source", "tensorboard", "curl", "cvat-cli", "label-studio", "hf")
"""Programs that aren't ours."""
PROGRAMS = ("benchmarks", "tests.campaign")
"""Packages that are run."""
PARSERS = {"apply": apply_parser(), "card": card_parser(), "serve": serve_parser()}
"""Commands with a parser of their own that takes nothing else."""
GROUPS = {
    "data.augment": lightning_bbox.Augment,
    "data.matching": lightning_bbox.Matching,
    "data.reading": lightning_bbox.Reading,
    "data.splits": lightning_bbox.Splits,
    "data.store": lightning_bbox.Storage,
    "data.crop": lightning_bbox.CropGeometry,
    "model.groups": lightning_bbox.WeightGroups,
    "model.groups.rules": lightning_bbox.WeightRule,
}
"""Options that are values of one class."""
QUICKLY = {"fit": TINY, "audit": [*TINY, "--folds=2"]}
QUICK = {"max_epochs=22": "max_epochs=1, limit_train_batches=1, logger=False"}
"""What is said for real work, and how a test does it."""


def blocks(language, *pages):
    """Return the fenced blocks in a language, of all pages or of some by their names."""
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        if not pages or page.name in pages
        for number, (written_in, text) in enumerate(
            re.findall(r"(?ms)^```(\w*)\n(.*?)^```", page.read_text())
        )
        if written_in == language
    ]


def commands(text, world):
    """Return a block's commands as words, without what others do, and with the world's names."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:  # variables of the environment
            words = words[1:]
        preset = next((word[7:] for word in words if word.startswith("preset:")), "")
        pictures = str(world / "sets" / (preset if preset in FORMATS else "csv"))
        names = {"DIR": pictures, "OTHER": pictures, "FOLDER/rbc": str(world / "sets" / "coco")}
        if words and words[0] not in ELSEWHERE:
            yield [names.get(word, word) for word in words]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which a reader may be: pictures in every format, a run, a class of one's own."""
    folder = tmp_path_factory.mktemp("reader")
    boxes = [("cell", (4.0 + 6 * n, 5.0 + n, 34.0 + 6 * n, 30.0 + n)) for n in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation_files, "SCENE", {f"p{n}": (90, 64, boxes) for n in range(12)})
        for name in FORMATS:
            getattr(annotation_files, f"write_{name}")(folder / "sets" / name)
    (folder / "pictures").mkdir()
    write_rectangles(folder / "pictures")
    with redirect_stdout(io.StringIO()):
        run = fit(folder / "runs", "NAME")
    shutil.copytree(run, folder / "runs" / "first")
    patches = np.random.default_rng(0).integers(0, 256, (40, 55, 55, 3), np.uint8)
    np.savez(folder / "patches.npz", patches=patches)
    for page, file in (
        ("README.md", "mine.py"),
        ("docs/how-to/compare.md", "losses.yaml"),
        ("docs/how-to/training.md", "nets.py"),
    ):
        text = (ROOT / page).read_text().partition(f"# {file}\n")[2]
        (folder / file).write_text(text.partition("```")[0])
    stand_in = "from tests.nn.backbones.test_factories import EfficientNet"
    (folder / "efficientnet_lite_pytorch.py").write_text(stand_in)
    return folder


@pytest.fixture
def there(world, monkeypatch):
    """The same folder, and the process in it."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "argv", ["lightning-bbox"])
    monkeypatch.syspath_prepend(world)
    return world


@pytest.mark.parametrize("text", blocks("sh"))
def test_a_command_is_one(text, there):
    """All its options are there, and have values that they may have."""
    for words in commands(text, there):
        ours = [at for at, word in enumerate(words) if word in ("lightning-bbox", "lightning_bbox")]
        if ours:
            refuse_unless_it_may_begin(words[ours[0] + 1 :])
        elif words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        else:
            assert words[:2] == ["python", "-m"]
            refuse_unknown_options(words[2], words[3:])


def refuse_unless_it_may_begin(words):
    if words[0] in PARSERS:
        assert PARSERS[words[0]].parse_args(words[1:])
        return
    if words[0] == "compare":
        own, options = compare_parser().parse_known_args(resolve(words)[1:])
        first, *further = own.config
        given = [*(f"--config={config}" for config in further), *options]
        study = read_study(first)
        words = ["fit", *study.arguments(study.runs()[0], given)]
    if words[0] == "audit":
        own, options = audit_parser().parse_known_args(words[1:])
        words = ["fit", *(f"--config={config}" for config in own.config), *options]
    if words[0] == "check":
        own, options = check_parser().parse_known_args(resolve(words)[1:])
        words = ["fit", *(f"--config={config}" for config in own.config), *options]
    if words[0] == "diagnose":
        own, options = diagnose_parser().parse_known_args(words[1:])
        words = ["fit", *(f"--config={config}" for config in own.config), *options]
    if words[0] == "export":
        own, options = export_parser().parse_known_args(words[1:])
        words = ["test", f"--ckpt_path={own.ckpt_path}", f"--config={own.ckpt_path}/config.yaml"]
        words += options
    with plain_warnings():
        assert rehearse(words)


def refuse_unknown_options(module, words):
    if module == "build":
        return
    program = import_module(f"{module}.__main__" if module in PROGRAMS else module)
    with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as left:
        program.main(["--help"])
    assert left.value.code == 0
    assert not [word for word in words if word.startswith("--") and word not in said.getvalue()]


@pytest.mark.slow
@pytest.mark.parametrize("text", blocks("sh", "README.md", "start.md"))
def test_what_a_newcomer_types_runs(text, there, tmp_path):
    for program, command, *options in commands(text, there):
        if program != "lightning-bbox":
            continue
        quick = QUICKLY.get(command, ["--data.compile=false"])
        assert main([command, *options, *quick, f"--runs={tmp_path}"]) == 0


@pytest.mark.parametrize("text", blocks("python"))
def test_a_snippet_runs(text, there):
    boxes = [np.array([[4.0, 5.0, 34.0, 30.0]] * 30)] * 2
    images = [there / "pictures" / f"{name}.png" for name in range(2)]
    told = {"image": images[0], "images": images, "rough_boxes": boxes[0], "boxes": boxes}
    told |= {"features": torch.randn(50, 8), "targets": torch.randn(50, 2)}
    for said, done in QUICK.items():
        text = text.replace(said, done)
    exec(text, told)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["question", "detector"])
def test_a_notebook_runs(name, real_data, tmp_path, monkeypatch):
    """Its cells in their order, for a few steps."""
    monkeypatch.chdir(tmp_path)
    said = []
    settings = {"DATA": str(real_data / "bccd"), "STEPS": 2} | (
        {"LONG": 3} if name == "question" else {}
    )
    with plain_warnings(), quietly():
        names = notebooks.run(
            ROOT / "docs" / "examples" / f"{name}.ipynb",
            settings,
            lambda _, printed, value: said.append((printed, value)),
        )
    if name == "question":
        errors = list(names["errors"].values())
        assert len(errors) == 7
        told = [printed for printed, _ in said[2:]]
        assert all(f"{error:.2f} px" in line for error, line in zip(errors, told, strict=True))
        assert all(0 < error < 5 for error in errors)
    else:
        assert sum(map(len, names["refined"])) == len(names["truth"])
        law = names["data"].source.law
        assert law.right == pytest.approx(1 / 3, abs=0.03)
        assert said[-1][1].size == (480, 360)


@pytest.mark.parametrize("name", ["question", "detector"])
def test_a_notebook_is_one(name):
    content = notebooks.read(ROOT / "docs" / "examples" / f"{name}.ipynb")
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    kinds = {"markdown": {"id", "metadata", "source"}}
    kinds["code"] = kinds["markdown"] | {"execution_count", "outputs"}
    assert all(set(cell) - {"cell_type"} == kinds[cell["cell_type"]] for cell in content["cells"])


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_config_may_begin(text, there):
    told = yaml.safe_load(text)
    if "model" in told:  # a study is read with its command, and the others are lines of one
        (there / "written.yaml").write_text(text)
        refuse_unless_it_may_begin(["fit", "-c", "written.yaml"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_somewhere(page):
    """Those within docs/ are the strict build's to check."""
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    links = [link for link in links if not link.startswith("https://")]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.fixture(scope="module")
def hooks():
    """What makes pages beside the written ones."""
    pytest.importorskip("mkdocs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return import_module("hooks")


@pytest.fixture(scope="module")
def options(hooks):
    """The options that are told of each class, by its name, and all names."""
    told, path, of_class = defaultdict(set), "", ""
    for line in hooks.option_page().splitlines():
        if line.startswith("## "):
            path, of_class = line.split()[1], ""
        elif line.startswith("### "):
            of_class = line[4:]
        elif name := re.match(r"\*\*`--([\w.]+)`\*\*", line):
            told[path, of_class].add(name[1])
    return told


def test_every_option_of_every_class_is_told(options):
    """Arguments as their signatures have them, under the option that takes the class."""
    told = set().union(*options.values())
    for path, group in GROUPS.items():
        assert {f"{path}.{field.name}" for field in fields(group)} <= told
    places = {of_class: path for path, of_class in options}
    parts = (lightning_bbox.CropDataModule, lightning_bbox.OffsetModel, lightning_bbox.Jitter)
    parts += (lightning_bbox.Backbone, lightning_bbox.Head, lightning_bbox.Loss)
    parts += (lightning_bbox.Init, lightning_bbox.Preprocess, lightning_bbox.Schedule)
    parts += (lightning_bbox.BinLabels, lightning_bbox.Decoder, lightning_bbox.Likelihood)
    parts += (lightning_bbox.BinLoss, lightning_bbox.Regularizer)
    public = [getattr(lightning_bbox, name) for name in lightning_bbox.__all__]
    seen = 0
    for each in public:
        if inspect.isclass(each) and issubclass(each, parts) and each not in parts:
            path = places.get(each.__name__, "model.backbone.neck")
            own = inspect.signature(each.__init__).parameters.values()
            named = {
                own.name for own in own if own.kind not in (own.VAR_KEYWORD, own.VAR_POSITIONAL)
            }
            arguments = {f"{path}.{name}" for name in named - {"self"} - set(groups_of(path))}
            assert arguments <= options[path, each.__name__] | options[path, "All of them"]
            seen += len(arguments)
    assert seen > 100


def groups_of(path):
    """Return the arguments at a place that are told one by one."""
    return {name.rpartition(".")[2] for name in GROUPS if name.rpartition(".")[0] == path}


def test_the_options_of_a_run_and_of_lightnings_trainer_are_told(options):
    assert {"config", "seed_everything", "name", "runs", "ckpt_path"} <= options["Of", ""]
    trainer = set(inspect.signature(Trainer.__init__).parameters) - {"self", "logger_", "model"}
    assert {f"trainer.{name}" for name in trainer} - options["trainer", ""] == set()


def test_the_reference_has_every_public_name(hooks):
    pages = "\n".join(hooks._pages().values())
    told = re.findall(r"^::: lightning_bbox\S*\.(\w+)$", pages, re.MULTILINE)
    assert sorted(told) == lightning_bbox.__all__
    listed = (ROOT / "mkdocs.yml").read_text()
    assert [room for room in hooks._pages() if f"- reference/{room}.md" not in listed] == []


def test_the_readme_is_read_to_its_end():
    assert len((ROOT / "README.md").read_text().split()) <= 2000
