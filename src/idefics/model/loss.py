"""How far a model's logits are from the ids that were due."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["IGNORED_LABEL", "labels_loss"]

IGNORED_LABEL = -100
"""The label that does not count, as the reference writes it."""


def labels_loss(logits_BTV: Tensor, labels_BT: Tensor, mask_BT: Tensor, *, ignored: int | None = None) -> Tensor:
    """Mean cross-entropy of the labels, each predicted by the position before it.

    Args:
        logits_BTV: of every position.
        labels_BT: ids, not shifted; `IGNORED_LABEL` does not count.
        mask_BT: 0 for padding, whose labels do not count. A first token after left padding does not count either: it has
            nothing before it to be predicted from.
        ignored: another id that does not count.
    """
    targets_BT = labels_BT[:, 1:].clone()
    skipped_BT = (mask_BT[:, 1:] == 0) | (mask_BT[:, :-1] == 0)
    if ignored is not None:
        skipped_BT |= targets_BT == ignored
    targets_BT[skipped_BT] = IGNORED_LABEL
    return F.cross_entropy(
        logits_BTV[:, :-1].float().flatten(0, 1), targets_BT.flatten().to(logits_BTV.device), ignore_index=IGNORED_LABEL
    )
