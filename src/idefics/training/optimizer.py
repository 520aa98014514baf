"""Which parameters learn how: Muon for the matrices inside a model, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["SplitOptimizer", "inner_matrix"]


def inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix of a repeated layer or of a connector, not a table, a head, a norm or a bias."""
    return parameter.ndim == 2 and (".layers." in name or "modality_projection" in name)


class SplitOptimizer:
    """Two optimizers that step as one.

    Muon (orthogonalised momentum: Jordan et al. 2024, torch's own) takes a rate many times that of AdamW.

    Args:
        named: parameters and their names.
        matrices_faster: Muon's rate, in AdamW's.
        matrix: which parameters Muon takes; all of them have two dimensions.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: of both.

    Attributes:
        parameters: all, in the given order.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        matrices_faster: float,
        matrix: Callable[[str, nn.Parameter], bool] = inner_matrix,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
    ) -> None:
        self.parameters: list[nn.Parameter] = []
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in named:
            self.parameters.append(parameter)
            (matrices if matrix(name, parameter) else rest).append(parameter)
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        if matrices:
            muon = torch.optim.Muon(matrices, lr=0.0, momentum=momentum, weight_decay=weight_decay)
            self._parts.append((muon, matrices_faster))
        if rest:
            self._parts.append((torch.optim.AdamW(rest, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True), 1.0))

    def step(self, rate: float) -> None:
        """Takes one step along the gradients there are, and drops them.

        Args:
            rate: of AdamW.
        """
        for optimizer, faster in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = faster * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Everything that the next step depends on but the parameters."""
        return [optimizer.state_dict() for optimizer, _ in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            ValueError: it is of other parameters.
        """
        for (optimizer, _), state in zip(self._parts, states, strict=True):
            optimizer.load_state_dict(state)
