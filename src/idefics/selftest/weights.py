"""Checks of the weights themselves: they are numbers, they have arrived, and packing has not changed them.

Letters: X rows of a trial, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from idefics.linears.joined import JoinedLinear
from idefics.linears.packed import PackedLinear
from idefics.linears.sites import named_weights
from idefics.model.nearness import distance
from idefics.selftest.checks import Check, inapplicable, judge
from idefics.selftest.subject import Subject
from idefics.weights.blank import half_blank
from idefics.weights.families import family_of

__all__ = ["packed_equals_plain", "weights_arrived", "weights_finite"]

ROWS = 5
"""Of a trial of a packed layer: no multiple of anything."""


def weights_finite(subject: Subject) -> Check:
    """No tensor holds NaN or an infinity."""
    bad = []
    for name, parameter in named_weights(subject.model):
        least, most = torch.aminmax(parameter.detach())  # NaN goes through; nothing the size of a weight is allocated
        if not (torch.isfinite(least) and torch.isfinite(most)):
            bad.append(name)
    return _none_of(
        subject,
        "weights are finite",
        bad,
        broken="NaN or infinite values in {}; download or convert again",
    )


def weights_arrived(subject: Subject) -> Check:
    """No matrix is zeros to a half or more, as where a download was broken off."""
    return _none_of(
        subject,
        "weights are there",
        [name for name, parameter in named_weights(subject.model) if half_blank(parameter.detach())],
        broken="half or more of {} is zeros: a download that was never completed? Download it again",
    )


def packed_equals_plain(subject: Subject) -> Check:
    """A packed layer of every shape computes what its weights do, one by one."""
    name = "packed layers compute what their weights do"
    shapes: dict[tuple[object, ...], JoinedLinear] = {}
    for module in subject.model.modules():
        if isinstance(module, JoinedLinear):
            shapes.setdefault((type(module), *module.sizes, module.in_features, _activation(module)), module)
    if not shapes:
        return inapplicable(name, "no weight is packed")
    return judge(
        name,
        max(_off(module) for module in shapes.values()),
        subject.allowed,
        holds=f"products of {len(shapes)} packed layer(s), one of each shape, and of their weights as they were",
        broken="packed weights are not the weights; load with packed=False",
    )


def _off(module: JoinedLinear) -> float:
    generator = torch.Generator().manual_seed(0)
    x_XC = torch.randn(ROWS, module.in_features, generator=generator).to(module.device, module.dtype)
    parts = []
    for parameters in module.weights():
        matrix = torch.cat([value for value in parameters.values() if value.ndim > 1])
        parts.append(F.linear(x_XC, matrix, parameters.get("bias")))
    expected_XC = torch.cat(parts, dim=-1)
    activation = _activation(module)
    return distance(module(x_XC), expected_XC if activation is None else activation(expected_XC))


def _activation(module: JoinedLinear) -> Callable[[Tensor], Tensor] | None:
    return module.activation if isinstance(module, PackedLinear) else None


def _none_of(subject: Subject, name: str, bad: Sequence[str], *, broken: str) -> Check:
    table = family_of(subject.config).table
    shown = ", ".join(map(table.published, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return Check(
        name=name,
        passed=not bad,
        measured=f"{len(bad)} bad tensors",
        allowed="0",
        explanation=broken.format(shown) if bad else "every stored value",
    )
