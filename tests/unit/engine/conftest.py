from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from asking import model_of
from idefics.model.base import VisionLanguageModel


@pytest.fixture(scope="module", params=["idefics2", "idefics"])
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return model_of(request.param)


@pytest.fixture
def encoded(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the tower encoded."""
    counts: list[int] = []
    encode = type(model).encode_images

    def counted(self: VisionLanguageModel, images: Sequence[Any]) -> torch.Tensor:
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(model), "encode_images", counted)
    return counts
