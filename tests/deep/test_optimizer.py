"""The optimizer by its name."""

import pytest
import torch
from torch import nn

from lowland.deep.optimizer import build_optimizer
from lowland.errors import InputError

from .room import make_state, run_steps, small


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))]


def test_sgd_has_momentum_and_nothing_else() -> None:
    optimizer = build_optimizer(small(lr_max=0.3), params())
    assert type(optimizer) is torch.optim.SGD
    assert len(optimizer.param_groups) == 1
    group = optimizer.param_groups[0]
    assert len(group["params"]) == 2
    found = {name: group[name] for name in ("lr", "momentum", "weight_decay", "nesterov", "dampening")}
    assert found == {"lr": 0.3, "momentum": 0.9, "weight_decay": 0, "nesterov": False, "dampening": 0}


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("RMSprop", torch.optim.RMSprop)])
def test_others_are_found_by_name_in_any_case_with_torchs_defaults(name: str, kind: type) -> None:
    ours, theirs = build_optimizer(small(optimizer=name, lr_max=0.01), params()), kind(params(), lr=0.01)
    assert type(ours) is kind
    assert ours.defaults == theirs.defaults


def test_options_are_python_literals() -> None:
    options = ("momentum=0.95", "nesterov=True")
    group = build_optimizer(small(optimizer_options=options), params()).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.95, True)
    options = ("betas=(0.8, 0.9)", "weight_decay=1e-2")
    group = build_optimizer(small(optimizer="adamw", optimizer_options=options), params()).param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("momentum",), "optimizer_options must be name=value, got 'momentum'"),
        (("2x=1",), "optimizer_options must be name=value, got '2x=1'"),
        (("momentum=exit()",), "the value of optimizer option momentum must be a literal, got 'exit\\(\\)'"),
        (("momentum=",), "the value of optimizer option momentum must be a literal, got ''"),
        (("bogus=1",), r"optimizer sgd must accept its options: .*bogus.*[^.]\.$"),
        (("momentum=-1",), r"optimizer sgd must accept its options: .*momentum.*[^.]\.$"),
        (("lr=1",), r"optimizer sgd must accept its options: .*lr.*[^.]\.$"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        build_optimizer(small(optimizer_options=options), params())


@pytest.mark.parametrize("name", ["adamwx", "lbfgs", "optimizer", "", "nn"])
def test_what_is_no_optimizer_is_refused_with_the_names_of_those_there_are(name: str) -> None:
    with pytest.raises(InputError, match=r"^optimizer must be one of .*adamw.*, got"):
        build_optimizer(small(optimizer=name), params())


@pytest.mark.parametrize(
    "name",
    sorted(
        n.lower()
        for n, v in vars(torch.optim).items()
        if isinstance(v, type) and issubclass(v, torch.optim.Optimizer) and n not in {"Optimizer", "LBFGS"}
    ),
)
def test_every_optimizer_takes_a_step_or_says_in_a_sentence_why_not(name: str) -> None:
    try:
        state = make_state(optimizer=name, lr_max=0.01)
        before = [p.detach().clone() for p in state.params]
        run_steps(state, 1)
    except InputError:
        assert name in {"muon", "sparseadam"}
    else:
        assert all(not torch.equal(p, b) for p, b in zip(state.params, before, strict=True))
