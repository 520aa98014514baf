"""What a batch of samples teaches a model: its answers."""

from __future__ import annotations

from torch import Tensor

from idefics.data.collate import Batch
from idefics.model.base import VisionLanguageModel
from idefics.model.logits import prompt_logits
from idefics.model.loss import IGNORED_LABEL, labels_loss

__all__ = ["answer_loss"]


def answer_loss(model: VisionLanguageModel, batch: Batch) -> Tensor:
    """Mean cross-entropy of the tokens that are learned; gradients reach everything, the tower included.

    Args:
        model: of either family.
        batch: on the model's device.

    Raises:
        InputError: the batch does not fit the model.
    """
    model.check(batch.inputs)
    images = batch.inputs.images_CHW
    logits_BTV = prompt_logits(model, batch.inputs, latents_NLD=model.encode_images(images) if images else None)
    return labels_loss(logits_BTV, batch.labels(IGNORED_LABEL), batch.inputs.attention_mask_BT)
