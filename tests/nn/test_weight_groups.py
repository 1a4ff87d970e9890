"""Groups of weights: each learns at its rate and decay, in its epochs, and the rest as before."""

import re
from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning

from lightning_bbox import (
    BadInput,
    BoxRegressor,
    Constant,
    L2Penalty,
    MaxNorm,
    ShallowConvNet,
    WeightGroups,
    WeightRule,
)
from lightning_bbox.nn.weight_groups import Grouping
from tests.parts import spec_with
from tests.runs import (
    DOUBLE,
    PYTHON,
    FrozenConvNet,
    assert_equal_runs,
    fit,
    ranks,
    run_well,
    same,
    scenes,
    trained_quietly,
)


def model_of(backbone=None, **arguments):
    backbone = backbone or ShallowConvNet(channels=(4, 8), convs_per_scale=1, fc=(16,))
    return BoxRegressor(backbone, compile=False, **arguments)


def net_of():
    model = model_of(ShallowConvNet(channels=(4,), fc=(6,)))
    model.build(spec_with([5.0, 5.0]), seed=0)
    return model.net


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.2)


class Steps(pl.Callback):
    """Keep weights and gradients before each step, and what came of it."""

    def __init__(self):
        self.before, self.gradients, self.after = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = dict(pl_module.net.named_parameters())
        self.before.append({name: each.detach().clone() for name, each in named.items()})
        self.gradients.append({name: each.grad for name, each in named.items()})

    def on_train_batch_end(self, trainer, pl_module, *_):
        named = pl_module.net.named_parameters()
        self.after.append({name: each.detach().clone() for name, each in named})


def test_each_weight_makes_the_step_of_its_rate_and_decay():
    groups = WeightGroups(
        decay_biases=False,
        first_layer=0.1,
        rules=[WeightRule(r"convs\.1\.", lr=2.0), WeightRule("^head.*weight", weight_decay=0.5)],
    )
    steps = Steps()
    model = model_of(groups=groups, optimizer=sgd, schedule=Constant())
    trained_quietly(model, scenes(), max_steps=1, callbacks=[steps])
    names = list(steps.before[0])
    layers = list(
        dict.fromkeys(name.rsplit(".", 1)[0] for name in names if name.startswith("backbone"))
    )
    for name in names:
        layer = name.rsplit(".", 1)[0]
        factor = 1.0
        if layer in layers:  # from 0.1 at the first to 1 behind the last, in equal ratios
            factor = 0.1 ** ((len(layers) - layers.index(layer)) / len(layers))
        weight, gradient = steps.before[0][name], steps.gradients[0][name]
        decay = 0.0 if weight.dim() < 2 else 0.2
        if re.search(r"convs\.1\.", name):
            factor *= 2
        elif re.search("^head.*weight", name):
            decay = 0.5
        expected = weight - 0.1 * factor * (gradient + decay * weight)
        torch.testing.assert_close(steps.after[0][name], expected, msg=name)


def test_without_groups_the_optimizer_has_one():
    trainer = trained_quietly(model_of(), scenes(), max_steps=1)
    (group,) = trainer.optimizers[0].param_groups
    assert len(group["params"]) == len(list(trainer.lightning_module.parameters()))


class Modes(pl.Callback):
    """Keep what each epoch left of the network, and the backbone's mode in each step."""

    def __init__(self):
        self.states, self.training = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.training.append(pl_module.net.backbone.training)

    def on_train_epoch_end(self, trainer, pl_module):
        state = pl_module.net.state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})


@pytest.mark.parametrize("regularizer", [MaxNorm(0.1), L2Penalty(0.1)], ids=type)
def test_weights_learn_in_their_epochs_alone(regularizer):
    modes = Modes()
    groups = WeightGroups(rules=[WeightRule("^backbone", from_epoch=1, until_epoch=3)])
    backbone = ShallowConvNet(channels=(4, 8), fc=(16,), dropout=0.2)
    model = model_of(backbone, groups=groups, regularizers=[regularizer])
    trained_quietly(model, scenes(), max_epochs=4, callbacks=[modes])
    backbones = [
        {name: value for name, value in state.items() if name.startswith("backbone")}
        for state in modes.states
    ]
    heads = [state["head.link.linear.weight"] for state in modes.states]
    assert modes.training == [False] * 4 + [True] * 8 + [False] * 4
    assert not any(
        value.equal(backbones[1][name]) for name, value in backbones[0].items() if "weight" in name
    )
    assert same(backbones[2], backbones[3])
    assert not any(one.equal(other) for one, other in pairwise(heads))


def test_what_stays_until_its_epoch_is_as_it_was_made():
    modes = Modes()
    groups = WeightGroups(rules=[WeightRule("^backbone", from_epoch=1)])
    model = model_of(groups=groups)
    trained_quietly(model, scenes(), max_epochs=2, callbacks=[modes])
    fresh = model_of()
    fresh.build(model.spec, seed=0)
    for name, value in fresh.net.backbone.state_dict().items():
        assert value.equal(modes.states[0][f"backbone.{name}"]), name


class Keep(pl.Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


UNFREEZING = {
    "rules": lambda: ({"groups": WeightGroups(rules=[WeightRule("^backbone", from_epoch=1)])}, []),
    "callback": lambda: ({}, [BackboneFinetuning(1)]),
}


@pytest.mark.filterwarnings("ignore:The provided params:UserWarning")
@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("kind", UNFREEZING)
def test_a_run_that_goes_on_unfreezes_as_one_that_was_never_stopped(kind, step, tmp_path):
    path, states = tmp_path / "half.ckpt", []
    for checkpoint in (None, path):
        arguments, callbacks = UNFREEZING[kind]()
        callbacks += [Keep(path, step)] * (checkpoint is None)
        model = model_of(**arguments)
        trained_quietly(model, scenes(), checkpoint, max_epochs=3, callbacks=callbacks)
        states.append(model.state_dict())
    assert same(*states)


@pytest.mark.filterwarnings("ignore:The provided params:UserWarning")
def test_the_rate_of_an_unfrozen_backbone_follows_the_schedule_from_where_it_was_set():
    class Rates(pl.Callback):
        seen = []  # noqa: RUF012 (one run)

        def on_train_batch_start(self, trainer, *_):
            self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    finetuning = BackboneFinetuning(1, backbone_initial_ratio_lr=0.1, lambda_func=lambda _: 1.0)
    trained_quietly(model_of(), scenes(), max_epochs=2, callbacks=[finetuning, Rates()])
    assert [len(rates) for rates in Rates.seen] == [1] * 4 + [2] * 4
    for head, backbone in Rates.seen[4:]:
        assert backbone == pytest.approx(0.1 * head)


def test_a_backbone_frozen_for_good_is_not_unfrozen():
    model = model_of(FrozenConvNet(channels=(4, 8)))
    with pytest.raises(BadInput, match=r"backbone\.frozen keeps it frozen for good; set that to"):
        trained_quietly(model, scenes(), max_epochs=2, callbacks=[BackboneFinetuning(1)])


REFUSED = {
    "is no regular expression": lambda: WeightRule("("),
    "lr of 'a' is 0; expected above 0": lambda: WeightRule("a", lr=0),
    "weight_decay of 'a' is -1; expected 0 or more": lambda: WeightRule("a", weight_decay=-1),
    "'a' learns from epoch 3 until 2; expected": lambda: WeightRule(
        "a", from_epoch=3, until_epoch=2
    ),
    "first_layer is -0.1; expected above 0": lambda: WeightGroups(first_layer=-0.1),
    "'nowhere' fits no weight that learns": lambda: Grouping(
        WeightGroups(rules=[WeightRule("nowhere")]), net_of()
    ),
    "'head.linear' fits no weight that learns and that no earlier": lambda: Grouping(
        WeightGroups(rules=[WeightRule("head"), WeightRule("head.linear")]), net_of()
    ),
    "nothing learns in epoch 0": lambda: Grouping(
        WeightGroups(rules=[WeightRule("", from_epoch=1)]), net_of()
    ),
    "nothing learns in epoch 2": lambda: Grouping(
        WeightGroups(rules=[WeightRule("backbone", until_epoch=1), WeightRule("", until_epoch=2)]),
        net_of(),
    ),
    "Rprop has no weight_decay; leave it out": lambda: Grouping(
        WeightGroups(decay_biases=False), net_of()
    ).optimized_by(torch.optim.Rprop),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_sense_is_refused(message):
    with pytest.raises(BadInput, match=re.escape(message)):
        REFUSED[message]()


@pytest.mark.filterwarnings("ignore:.isinstance.treespec")
def test_an_epoch_that_never_comes_is_told():
    groups = WeightGroups(rules=[WeightRule("^backbone", from_epoch=2)])
    with pytest.warns(
        UserWarning, match="learns from epoch 2, counted from 0, and the run has 2: those"
    ):
        trained_quietly(model_of(groups=groups), scenes(), max_epochs=2)


def test_other_groups_are_another_run(tmp_path):
    trainer = trained_quietly(model_of(), scenes(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    model = model_of(groups=WeightGroups(decay_biases=False))
    with pytest.raises(BadInput, match=r"model\.groups is None in the checkpoint and WeightGroups"):
        trained_quietly(model, scenes(), tmp_path / "a.ckpt", max_epochs=2)


@pytest.mark.slow
def test_two_processes_unfreeze_as_one(tmp_path):
    rules = "--model.groups.rules=[{pattern: ^backbone, lr: 0.5, from_epoch: 1}]"
    one = fit(tmp_path, "one", rules, base=DOUBLE)
    command = [*DOUBLE, f"--runs={tmp_path}", "--name=two", rules, *ranks(2)]
    run_well([*PYTHON, *command])
    assert_equal_runs(tmp_path / "two", one, atol=1e-9)
