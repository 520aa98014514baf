from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import idefics


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> idefics.Idefics2ForConditionalGeneration:
    return idefics.AutoModelForVision2Seq.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> idefics.Idefics2Processor:
    return idefics.AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((40, 60), (71, 33), (50, 50))
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
