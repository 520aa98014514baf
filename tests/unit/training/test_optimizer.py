"""Who learns how fast, and when."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from idefics.errors import OptionError
from idefics.training.optimizer import SplitOptimizer, inner_matrix
from idefics.training.schedule import Schedule
from learning import tiny_learner


@pytest.mark.parametrize("family", ["idefics2", "idefics"])
def test_every_parameter_is_taken_once(family: str) -> None:
    model = tiny_learner(family)[0]
    optimizer = SplitOptimizer(model.named_parameters(), matrices_faster=2.0)
    assert len({id(parameter) for parameter in optimizer.parameters}) == len(optimizer.parameters)
    assert {id(parameter) for parameter in optimizer.parameters} == {id(parameter) for parameter in model.parameters()}


def test_tables_heads_and_norms_are_no_inner_matrices() -> None:
    model = tiny_learner("idefics2")[0]
    inner = {name for name, parameter in model.named_parameters() if inner_matrix(name, parameter)}
    assert "text_model.layers.0.self_attn.q_proj.weight" in inner
    assert not [name for name in inner if "embed" in name or "norm" in name or "bias" in name or "lm_head" in name]
    named = dict(model.named_parameters())
    assert all(named[name].ndim == 2 for name in inner)


def test_matrices_go_faster() -> None:
    layers = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])})
    model = nn.ModuleDict({"a": layers})
    optimizer = SplitOptimizer(model.named_parameters(), matrices_faster=7.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.5)
    rates = [group["lr"] for state in optimizer.state_dict() for group in state["param_groups"]]
    assert rates == [3.5, 0.5]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"steps": 5, "warmup": 0}, "warmup = 0"),
        ({"steps": 5, "decay": -1}, "decay = -1"),
        ({"steps": 5, "peak": 0.0}, "peak = 0.0"),
        ({"steps": 5, "peak": float("nan")}, "peak = nan"),
    ],
)
def test_refused_schedules(fields: dict[str, float], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Schedule(**{"peak": 1.0, **fields})  # type: ignore[arg-type]
