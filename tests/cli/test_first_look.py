"""What is refused before anything heavy is imported, and that the parser knows the same options."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from jsonargparse import ArgumentParser

from lightning_bbox.cli.arguments import COMMANDS, OPTIONS, OPTIONS_OF, resolve
from lightning_bbox.cli.commands import BoxCLI
from lightning_bbox.cli.first_look import look_first
from lightning_bbox.cli.main import main
from lightning_bbox.core.errors import BadInput

FIT = ["fit", "-c", "preset:quickstart"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), (["fit", "--epochs=9"], 2), ([*FIT, "--data.knd=a"], 2)],
)
def test_help_and_slips_of_the_pen_wait_for_no_import(arguments, code):
    told = (
        "import sys\n"
        "from lightning_bbox.__main__ import main\n"
        f"code = main({arguments})\n"
        "print(code, {'torch', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    assert done.stdout.endswith(f"{code} set()\n")


def test_the_version_is_the_installed_one(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning_bbox {version('lightning_bbox')}\n"


def test_the_help_of_fit_tells_all_its_options_the_trainers_last(capsys):
    assert main(["fit", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: lightning-bbox fit [-c CONFIG ...] [options]\n\nTrain a model")
    places = [
        said.index(name) for name in ("--second", "--model.help", "--data.help", "--trainer.acc")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"fit"}))
def test_the_help_of_a_command_tells_what_is_its_own(command, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: lightning-bbox {command} ")
    told = {line.split()[0].rstrip(",") for line in said.splitlines() if line.startswith("  -")}
    assert {f"--{name}" for name in OPTIONS_OF.get(command, ())} <= told
    assert not [name for name in told if name.startswith(("--trainer", "--model", "--second"))]
    assert len(said.splitlines()) <= 60
    if command not in ("apply", "serve", "export", "card"):
        words = " ".join(said.split())
        assert "All options of fit may be given too" in words or "those of fit" in words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["audit", *FIT[1:], "--folds=x"], "folds: invalid int value: 'x'; `lightning"),
        (["apply"], "options: the following arguments are required: decisions; `lightning-bbox ap"),
        (["serve", "run", "--prt=9"], "options: unrecognized arguments: --prt=9; `lightning-bbox"),
        (["export", "--format=x"], "format: invalid choice: 'x' (choose from "),
        (["compare"], "config: missing; name the study's file"),
    ],
)
def test_a_wrong_option_of_a_command_is_refused_in_one_sentence(words, sentence, capsys):
    assert main(words) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.removeprefix("lightning-bbox: ").removeprefix("--").startswith(sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data.num_scense=9"], "data.num_scense: there is no such option; did you mean num_sc"),
        (["--data.knd", "a"], "data.knd: there is no such option; did you mean kind?"),
        (["--model.hed=BinHead"], "model.hed: there is no such option; did you mean head?"),
        (["--model", "RidgeRegressor", "--model.optimizer=SGD"], "model.optimizer: there is no"),
        (["--trainer.max_epoch=1"], "did you mean trainer.max_epochs?"),
        (["--max_shift=3"], "max_shift: there is no such option"),
        (["--data.kind"], "data.kind: has no value; write one behind it"),
        (["--data.kind", "--name=a"], "data.kind: has no value; write one behind it"),
    ],
)
def test_what_is_wrong_at_first_sight_is_refused(words, sentence):
    with pytest.raises(BadInput) as refusal:
        look_first([*FIT, *words])
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--data=mine.Data", "--data.anything=1"],
        ["--model", "mine.Model", "--model.anything", "1"],
        ["--trainer.callbacks+=mine.Callback", "--trainer.callbacks.anything=1"],
        ["--data.crop.anything=1", "--model.head.anything=1"],
        ["--data.help"],
        ["--print_config"],
    ],
)
def test_what_others_may_have_is_left_to_the_parser(words):
    look_first([*FIT, *words])


@pytest.mark.parametrize("command", [*BoxCLI.subcommands()])
def test_the_parser_has_the_same_options(command, monkeypatch):
    seen = {}

    def keep(parser, *_, **__):
        seen["main"] = parser
        raise KeyboardInterrupt

    monkeypatch.setattr(ArgumentParser, "parse_args", keep)
    assert main([command, *FIT[1:]]) == 130
    (commands,) = (a.choices for a in seen["main"]._actions if isinstance(a.choices, dict))
    assert commands.keys() == BoxCLI.subcommands().keys()
    names = {action.dest.partition(".")[0] for action in commands[command]._actions}
    assert names == {*OPTIONS, *OPTIONS_OF.get(command, ()), "trainer", "model", "data"}


def test_a_tilde_is_the_home_folder_wherever_a_shell_leaves_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--runs=~/out", "--data.root", "~/set", "--data.store.folder=~", "--name=a~/b"]
    there = ["--runs=/home/me/out", "--data.root", "/home/me/set", "--data.store.folder=/home/me"]
    assert resolve(["fit", *words]) == ["fit", *there, "--name=a~/b"]


def test_words_that_no_config_can_hold_are_refused():
    with pytest.raises(
        BadInput, match=r"^'--data.root=caf\\udce9': isn't UTF-8, .*--data\.root=\.$"
    ):
        resolve(["fit", "--data.root=caf\udce9"])
