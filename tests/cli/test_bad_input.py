"""What the command says to what can't be meant: one sentence, with exit code 2.

A row is named by what is wrong. Behind that come the command and the sentence, and the files where
there are any. `{root}` is the folder of the files; `...` stands for any words, and more may follow.
What is said of files stands in `data/test_bad_files`, but for those here, which are there word for
word.
"""

import io
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox.cli.arguments import COMMANDS
from lightning_bbox.core.errors import BadInput
from tests.annotation_files import (
    CELLS,
    NINE,
    ROW,
    ROWS,
    XML,
    A,
    changed,
    csv_of,
    pattern_of,
    voc,
    write,
)

CSV, COCO, YOLO, VOC = (
    f"fit -c preset:{name} --data.root={{root}}" for name in ("csv", "coco", "yolo", "voc")
)
IMAGE_SETS = {"ImageSets/Main/trainval.txt": "0\n1\n2", "ImageSets/Main/test.txt": "2\n3"}
for n in range(4):
    IMAGE_SETS[f"JPEGImages/{n}.png"] = (64, 48)
    IMAGE_SETS[f"Annotations/{n}.xml"] = voc(f"{n}.png", (64, 48), *CELLS)


def truncated_png():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()[:2000]


# Laid out as tables: the command, what it says, what is there.
# fmt: off
FILES = {
    "no folder": (f"{CSV}/nowhere",
        "{root}/nowhere: is no folder; correct root= (--data.root)"),
    "a file for a folder": (f"{CSV}/b.csv",
        "{root}/b.csv: is no folder; correct root= (--data.root)",
        {"b.csv": csv_of(ROW)}),
    "no annotation file": (f"{CSV} --data.reading.annotations=b.csv",
        ("b.csv: is no file or folder in {root}; "
         "correct annotations= (--data.reading.annotations)")),
    "annotations outside the root": (f"{CSV} --data.reading.annotations=../b.csv",
        ("annotations: '../b.csv' leads out of {root}; move it inside or set allow_outside=True "
         "(--data.reading.allow_outside=true)")),
    "no folder of pictures": (f"{VOC} --data.reading.images=pics",
        ("Annotations/a.xml: there is no picture 'a.png' in pics/Annotations, pics; "
         "add it, correct the entry, or correct images= (--data.reading.images); "
         "on_missing='skip' (--data.reading.on_missing=skip) leaves such pictures out"),
        {"Annotations/a.xml": XML}),
    "a bad box, to be refused": (f"{CSV} --data.reading.on_bad=error",
        ("b.csv:3: the box xmin=nan, ymin=1, xmax=2, ymax=2 in a.png is not finite; "
         "correct it, or leave such boxes out with on_bad='skip' (--data.reading.on_bad=skip)"),
        A | {"b.csv": csv_of(ROW, "a.png,nan,1,2,2")}),
    "a truncated picture": (CSV,
        ("{root}/8.png: the picture can't be decoded (image file is truncated); "
         "replace or remove it"),
        NINE | {"8.png": truncated_png(), "b.csv": csv_of(*ROWS)}),
    "an object without ymax": (VOC,
        "a.xml: object 1: has no <ymax>; add it or remove the <bndbox>",
        A | {"a.xml": XML.replace("<ymax>9</ymax>", "")}),
    "an unknown category": (COCO,
        ("b.json: none of the 1 boxes can be used, read as COCO JSON, left top corner and size in "
         "pixels; correct them, such as b.json: annotation 0: the box x=1, y=1, width=5, height=5 "
         "in a.png has the category_id 'x', none of the 2 of its file"),
        A | {"b.json": changed("annotations", category_id="x")}),
    "commas in the numbers": (YOLO,
        "a.txt:1: cx is '0,5', not a number; correct it",
        A | {"a.txt": "0 0,5 0,5 0,1 0,1"}),
    "a text for a number": (CSV,
        "b.csv:2: xmin is 'one', not a number; correct it",
        A | {"b.csv": csv_of("a.png,one,1,2,2")}),
    "a picture in two split files": (VOC,
        ("ImageSets/Main/test.txt: JPEGImages/2.png is named in ImageSets/Main/trainval.txt too; "
         "put each picture into one split"),
        IMAGE_SETS),
    "no box left by min_size": (f"{CSV} --data.min_size=30",
        ("the train split has no boxes left in its 6 pictures (0 were bad, 6 not kept by "
         "classes, min_size and use_marked); change these or the splits"),
        NINE | {"b.csv": csv_of(*ROWS)}),
    "a pattern that doesn't fit": (f"{CSV} --data.splits.group_pattern=^(0)",
        ("1.png: group_pattern '^(0)' finds no group in this path; "
         "write a pattern that fits every picture"),
        NINE | {"b.csv": csv_of(*ROWS)}),
}

FIT = "fit -c preset:quickstart"
OPTIONS = {
    "no command": ("", "command: none is given; choose from {commands}"),
    "a misspelt command": ("fti", "command: 'fti' is none; choose from {commands}"),
    "no options": ("fit", "model, data: missing; add it to the command line or a config"),
    "no root": ("fit -c preset:csv",
        "data.root is not set; name the folder of the data set with --data.root DIR"),
    "an option without value": ("fit -c preset:csv --data.root --trainer.max_epochs=3",
        "data.root: has no value; write one"),
    "a misspelt option": (f"{FIT} --data.num_scense=9",
        "data.num_scense: there is no such option; did you mean num_scenes?"),
    "an abbreviated option": (f"{FIT} --trainer.max_ep=9",
        "trainer.max_ep: there is no such option; did you mean trainer.max_epochs?"),
    "an option of no group": (f"{FIT} --epochs=9",
        "epochs: there is no such option; `lightning-bbox fit --help` lists the options"),
    "a misspelt option of a part": (f"{FIT} --data.crop.contxt=2",
        "data.crop.contxt: there is no such option; did you mean context?"),
    "an option of another class": (f"{FIT} --model.optimizer=SGD --model.optimizer.betas=1",
        ("model.optimizer.betas: there is no such option; choose from lr, momentum, ... fused, "
         "or name the class that has it first")),
    "an option before its class": (f"{FIT} --model.head.loss=L1Loss",
        "model.head.loss: there is no such option; name the class that has it first"),
    "a text for a whole number": (f"{FIT} --trainer.max_epochs=many",
        "trainer.max_epochs: is 'many'; expected a whole number"),
    "a text for a number": (f"{FIT} --model.optimizer=SGD --model.optimizer.lr=fast",
        "model.optimizer.lr: is 'fast'; expected a number"),
    "a pixel to begin at that none begins at": (f"{VOC} --data.reading.voc_base=2",
        "data.reading.voc_base: is '2'; expected 0, 1, 'edges'"),
    "a null for a part that is always there": (f"{CSV} --data.splits=null",
        "data.splits: is null; leave it out for its default"),
    "such a part's key with nothing behind it": (f"{CSV} -c {{root}}/c.yaml",
        "{root}/c.yaml: data.splits: is null; leave it out for its default",
        {"c.yaml": "data: {class_path: BoxDataModule, init_args: {splits: }}"}),
    "a null for a diagnosis": (f"diagnose {CSV.removeprefix('fit ')} --data.reading=null",
        "data.reading: is null; leave it out for its default"),
    "a null for a number": (f"{CSV} --data.min_size=null",
        "data.min_size: is null; give a number, or leave it out for its default"),
    "a null for a number of a part": (f"{FIT} --data.crop.size=null",
        "data.crop.size: is null; give a whole number, or leave it out for its default"),
    "a text for a list": (f"{CSV} --data.classes=cell",
        "data.classes: is 'cell'; expected a list"),
    "an unknown choice": (f"{FIT} --data.kind=blue",
        "data.kind: is 'blue'; expected 'bright', 'polar', 'texture', 'template'"),
    "neither choice nor switch": (f"{FIT} --data.compile=maybe",
        "data.compile: is 'maybe'; expected 'auto', true or false, 'triton'"),
    "an unknown format": (f"{CSV} --data.reading.format=pascal",
        "data.reading.format: is 'pascal'; expected 'auto', 'voc', 'cvat', 'coco', 'labelme'"),
    "an unknown class": (f"{FIT} --model.head=NoHead",
        "model.head: is 'NoHead'; expected BinHead, LikelihoodHead, LinearHead, SoftArgmaxHead"),
    "a misspelt class of many": (f"{FIT} --model.optimizer=adamw",
        "model.optimizer: is 'adamw'; did you mean AdamW?"),
    "a class for another part": (f"{FIT} --model.head=SceneDataModule",
        "model.head: is 'SceneDataModule'; expected BinHead, LikelihoodHead, LinearHead, Soft"),
    "crops that a layer does not take": (
        f"{FIT} --model.backbone=AlexNet --data.compile=false",
        "data.crop.size is 45, and fc6 of AlexNet ... takes at least 63 px; set it so, or read"),
    "weights of the other layout": (
        f"{FIT} --model.backbone=AlexNet --model.backbone.weights=caffe",
        "AlexNet weights 'caffe' don't fit layout 'torchvision'; set layout to 'caffe'"),
    "a number out of range": (f"{FIT} --data.crop.context=0.5",
        "crop context 0.5 is outside 1..10; 1 cuts the proposal itself"),
    "no noise": (f"{FIT} --data.noise=0", "data noise is 0"),
    "no run to go on with": ("fit --resume nowhere",
        "nowhere: no such run; --resume takes the folder of one"),
    "no run to predict with": ("predict --ckpt_path nowhere --data.root DIR",
        "nowhere: no such run or checkpoint; correct --ckpt_path"),
    "no checkpoint to test": ("test -c preset:quickstart",
        "test needs a trained model; add --ckpt_path"),
    "no such checkpoint": ("test -c preset:quickstart --ckpt_path no.ckpt",
        "no.ckpt: no such checkpoint"),
    "no such weights": (f"{FIT} --data.num_scenes=60 --data.compile=false --model.weights no.ckpt",
        "no.ckpt: no such checkpoint"),
    "no such preset": ("fit -c preset:cvs",
        "there is no preset 'cvs'; choose one of alexnet_fc6_ridge, ... csv, ... yolo"),
    "no such config": ("fit -c {root}/c.yaml",
        "{root}/c.yaml: can't be read (No such file or directory); check its name"),
    "a folder for a config": ("fit -c {root}",
        "{root}: can't be read (Is a directory); check its name"),
    "an empty config": ("fit -c {root}/c.yaml",
        "{root}/c.yaml: holds nothing, no settings; write options as in trainer: {max_epochs: 9}",
        {"c.yaml": ""}),
    "a text for a config": ("fit -c {root}/c.yaml",
        "{root}/c.yaml: holds 'some words', no settings; write options as in trainer:",
        {"c.yaml": "some words"}),
    "a picture for a config": ("fit -c {root}/c.yaml",
        "{root}/c.yaml: is not UTF-8 text (... byte 0x89 in position 0...); give a file in YAML",
        {"c.yaml": b"\x89PNG\r\n\x1a\n"}),
    "a broken config": ("fit -c {root}/c.yaml",
        "{root}/c.yaml:2: is not well-formed YAML (expected ',' or '}'...); repair",
        {"c.yaml": "trainer: {max_epochs: 9\n"}),
    "a misspelt option in a config": (f"{FIT} -c {{root}}/c.yaml",
        "{root}/c.yaml: data.knd: there is no such option; did you mean kind?",
        {"c.yaml": "data: {class_path: SceneDataModule, init_args: {knd: bright}}"}),
    "a misspelt trainer option in a config": (f"{FIT} -c {{root}}/c.yaml",
        "trainer.max_epoch: there is no such option; did you mean trainer.max_epochs?",
        {"c.yaml": "trainer: {max_epoch: 9}"}),
    "a wrong type in a config": (f"{FIT} -c {{root}}/c.yaml",
        "{root}/c.yaml: data.num_scenes: is 'many'; expected a whole number",
        {"c.yaml": "data: {class_path: SceneDataModule, init_args: {num_scenes: many}}"}),
    "a wrong class in a config": (f"{FIT} -c {{root}}/c.yaml",
        "{root}/c.yaml: data: is 'lightning_bbox.ScenesDataModule'; expected BoxDataModule, Patch",
        {"c.yaml": "data: {class_path: lightning_bbox.ScenesDataModule}"}),
    "a class of torch for a head": (f"{FIT} -c {{root}}/c.yaml",
        "{root}/c.yaml: model.head: is 'torch.nn.Linear'; expected BinHead, LikelihoodHead, Lin",
        {"c.yaml": "model: {class_path: BoxRegressor, init_args: {head: torch.nn.Linear}}"}),
}

CPU = f"{FIT} --trainer.accelerator=cpu"
OTHERWISE = "correct its accelerator, devices, strategy or precision"
MACHINE = {
    "a precision that a CPU hasn't": (f"{CPU} --trainer.precision=16-mixed",
        "trainer.precision: is '16-mixed', which a CPU can't do; choose bf16-mixed or 32-true"),
    "no devices": (f"{CPU} --trainer.devices=0",
        f"trainer: ...(devices='0')` ... not a valid input using cpu accelerator; {OTHERWISE}"),
    "a text for the number of devices": (f"{CPU} --trainer.devices=all",
        f"trainer: `devices` ... `CPUAccelerator` should be an int > 0; {OTHERWISE}"),
    "a misspelt accelerator": (f"{FIT} --trainer.accelerator=gpuu",
        f"trainer: ... invalid accelerator name: `accelerator='gpuu'`; {OTHERWISE}"),
    "a misspelt strategy": (f"{CPU} --trainer.strategy=dpp",
        f"trainer: ... invalid strategy name: `strategy='dpp'`; {OTHERWISE}"),
}
GPUS = {
    "a GPU where there is none": (f"{FIT} --trainer.accelerator=gpu",
        f"trainer: No supported gpu backend found; {OTHERWISE}"),
    "more GPUs than there are": (f"{FIT} --trainer.accelerator=gpu --trainer.devices=8",
        f"trainer: No supported gpu backend found; {OTHERWISE}"),
}
# fmt: on


def rows(table, *marks):
    """Return the rows of a table as parameters."""
    return [
        pytest.param(command, sentence, *(files or [{}]), id=name, marks=marks)
        for name, (command, sentence, *files) in table.items()
    ]


COLUMNS = ("command", "sentence", "files")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def refusal(tmp_path, monkeypatch, refused):
    """Return a function that runs a command beside some files, and returns its one sentence."""
    root = tmp_path / "data"

    def refusal_of(command, files):
        root.mkdir()
        write(root, files)
        monkeypatch.chdir(tmp_path)
        sentence = refused([word.replace("{root}", str(root)) for word in shlex.split(command)])
        assert not list(tmp_path.glob("runs/*"))
        return sentence.replace(str(root), "{root}")

    return refusal_of


@pytest.mark.parametrize(COLUMNS, rows(FILES))
def test_files_are_refused_word_for_word(refusal, command, sentence, files):
    assert refusal(command, files) == sentence


@pytest.mark.parametrize(COLUMNS, [*rows(OPTIONS), *rows(MACHINE), *rows(GPUS, NO_GPU)])
def test_options_are_refused(refusal, command, sentence, files):
    assert re.match(pattern_of(sentence, commands=", ".join(COMMANDS)), refusal(command, files))


def test_without_a_compiler_compiling_is_refused(refusal, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    command = f"{CSV} --data.compile=true --trainer.accelerator=cpu"
    assert refusal(command, NINE | {"b.csv": csv_of(*ROWS)}) == (
        "compile is true, but no C++ compiler was found; install g++, set CXX, or use auto"
    )


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x85", "\u2028"])
def test_a_refusal_is_one_line_whatever_it_quotes(end):
    assert str(BadInput.at(f"a{end}b", "is none", "go")) == "a b: is none; go"


def test_a_refusal_can_be_read_whatever_it_quotes():
    sentence = str(BadInput.at("a.txt:1", "1" * 1_000_000, "correct it"))
    assert len(sentence) < 2000
    assert sentence.startswith("a.txt:1: 1")
    assert " ... " in sentence
    assert sentence.endswith("1; correct it")
