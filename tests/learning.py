"""Tiny models that learn, of both families, with the processors that belong to them."""

from __future__ import annotations

from idefics.model.base import VisionLanguageModel
from idefics.processor.base import Processor


def tiny_learner(family: str) -> tuple[VisionLanguageModel, Processor]:
    """A model with random weights, in float32, and its processor; `family` is `"idefics2"` or `"idefics"`."""
    import fakes
    import gated
    from idefics.processor.idefics1 import IdeficsProcessor
    from idefics.processor.square_image import SquareImageProcessor

    if family == "idefics2":
        return fakes.tiny_model(std=0.2), fakes.tiny_processor()
    processor = IdeficsProcessor(SquareImageProcessor(image_size=gated.SIDE), fakes.tiny_tokenizer())
    size = len(processor.tokenizer)
    return gated.tiny_model(vocab_size=size - 3, std=0.2, max_position_embeddings=1024), processor
