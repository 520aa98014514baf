"""Objects of transformers that people hand to the model: streamers and generation configs."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from idefics import AutoModelForVision2Seq, AutoProcessor, Idefics2ForConditionalGeneration, Idefics2Processor
from idefics.errors import OptionError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import GenerationConfig, TextIteratorStreamer, TextStreamer


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Idefics2ForConditionalGeneration:
    return AutoModelForVision2Seq.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> Idefics2Processor:
    return AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def inputs(processor: Idefics2Processor) -> dict[str, torch.Tensor]:
    return dict(processor(text="<image>In the", images=Image.new("RGB", (40, 40), "red"), return_tensors="pt"))


def _text(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, inputs: dict[str, torch.Tensor], **options: object
) -> str:
    ids = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True)


def test_streamers_of_the_reference(
    model: Idefics2ForConditionalGeneration,
    processor: Idefics2Processor,
    inputs: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = _text(model, processor, inputs, max_new_tokens=8)
    printing = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**inputs, max_new_tokens=8, streamer=printing)
    assert capsys.readouterr().out == f"{expected}\n"
    iterating = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=20)
    thread = threading.Thread(target=lambda: model.generate(**inputs, max_new_tokens=8, streamer=iterating))
    thread.start()
    assert "".join(iterating) == expected
    thread.join()


def test_a_generation_config_of_the_reference(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, inputs: dict[str, torch.Tensor]
) -> None:
    config = GenerationConfig(max_new_tokens=5, min_new_tokens=5, repetition_penalty=1.5)
    expected = _text(model, processor, inputs, max_new_tokens=5, min_new_tokens=5, repetition_penalty=1.5)
    assert _text(model, processor, inputs, generation_config=config) == expected
    beams = GenerationConfig(max_new_tokens=5, num_beams=3, num_return_sequences=2, early_stopping=True)
    assert model.generate(**inputs, generation_config=beams).shape[0] == 2
    drawn = GenerationConfig(max_new_tokens=5, do_sample=True, temperature=0.7, top_p=0.9)
    assert model.generate(**inputs, generation_config=drawn).shape[0] == 1
    with pytest.raises(OptionError, match=r"penalty_alpha=0\.6 is not offered here"):
        model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=5, penalty_alpha=0.6, top_k=4))
    guessed = model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=5, prompt_lookup_num_tokens=3))
    assert torch.equal(guessed, model.generate(**inputs, max_new_tokens=5, do_sample=False))
