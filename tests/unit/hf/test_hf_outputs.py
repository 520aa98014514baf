"""What `forward` and `generate` return, and what they say of what is not here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from PIL import Image

from idefics import Idefics2ForConditionalGeneration, Idefics2Processor
from idefics.errors import InputError, NotOffered, OptionError


@pytest.fixture
def one(processor: Idefics2Processor, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    return dict(processor(text="<image>what is it", images=pictures[0], return_tensors="pt"))


def test_outputs_are_mappings_and_tuples(model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor]) -> None:
    out = model(**one)
    assert isinstance(out, Mapping)
    assert list(out) == list(out.keys()) == ["logits", "image_hidden_states"]
    assert "logits" in out
    assert "loss" not in out
    assert out.loss is out.past_key_values is None
    assert out["logits"] is out[0] is out.to_tuple()[0] is out.logits
    assert out[-1:] == (out.image_hidden_states,)
    assert dict(**out).keys() == {"logits", "image_hidden_states"}
    assert out.get("loss", 5) == 5
    with pytest.raises(KeyError):
        out["loss"]
    assert list(model(**one, labels=one["input_ids"])) == ["loss", "logits", "image_hidden_states"]
    assert len(model(**one, return_dict=False)) == 2
    generated = model.generate(**one, max_new_tokens=1, return_dict_in_generate=True)
    assert list(generated) == ["sequences", "sequences_scores", "completions"]


def test_lists_are_told_how_to_become_tensors(model: Idefics2ForConditionalGeneration, processor: Idefics2Processor) -> None:
    lists = processor(text="q")
    for call in (model, model.generate):
        with pytest.raises(InputError, match=r"input_ids is of type list; .*return_tensors='pt'"):
            call(**lists)


def test_arguments_that_ask_for_nothing(model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor]) -> None:
    plain = model(**one).logits
    nothing: dict[str, Any] = {"output_attentions": False, "output_hidden_states": None, "past_key_values": None}
    assert torch.equal(model(**one, **nothing, logits_to_keep=0, use_cache=True).logits, plain)


@pytest.mark.parametrize("options", [{"output_hidden_states": True}, {"inputs_embeds": torch.zeros(1)}, {"logits_to_keep": 1}])
def test_what_transformers_has_is_said_by_name(
    model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    with pytest.raises(NotOffered, match=f"{next(iter(options))}=.*; transformers offers it and loads the same folder"):
        model(**one, **options)
    with pytest.raises(OptionError, match="does not know lables; there are attention_mask, input_ids, labels"):
        model(**one, lables=3)


@pytest.mark.parametrize("name", ["resize_token_embeddings", "compute_transition_scores", "gradient_checkpointing_enable"])
def test_methods_that_are_not_here(model: Idefics2ForConditionalGeneration, name: str) -> None:
    assert not hasattr(model, name)
    with pytest.raises(NotOffered, match=f"{name} is not offered here; transformers offers it"):
        getattr(model, name)
    with pytest.raises(AttributeError):
        _ = model.nonsense


def test_attributes_that_are_not_here(model: Idefics2ForConditionalGeneration, processor: Idefics2Processor) -> None:
    owners = (
        (model, ("get_decoder",), ""),
        (model, ("lm_head",), "get_output_embeddings gives it"),
        (model.config, ("architectures", "_name_or_path"), ""),
        (model.config, ("get_text_config",), "text_config is there"),
        (model.config, ("torch_dtype",), "dtype has its name"),
        (processor, ("get_processor_dict", "push_to_hub"), ""),
        (processor, ("post_process_image_text_to_text",), "batch_decode gives the texts"),
        (processor.image_processor, ("split_images",), ""),
    )
    for owner, names, instead in owners:
        for name in names:
            assert not hasattr(owner, name)
            with pytest.raises(
                NotOffered, match=rf"{type(owner).__name__}\.{name} is not offered here.*{instead}.*; transform"
            ):
                getattr(owner, name)
    for owner in (model.config, processor, processor.image_processor):
        with pytest.raises(AttributeError, match="object has no attribute 'nonsense'") as caught:
            _ = owner.nonsense
        assert not isinstance(caught.value, NotOffered)
        assert copy.deepcopy(owner).to_dict() == owner.to_dict()


def test_configurations_are_read_only(model: Idefics2ForConditionalGeneration) -> None:
    for name in ("dtype", "image_token_id", "text_config"):
        with pytest.raises(NotOffered, match=rf"Idefics2Config\.{name} = \.\.\. is not offered here"):
            setattr(model.config, name, 1)


def test_parts_called_as_the_references(model: Idefics2ForConditionalGeneration, one: dict[str, torch.Tensor]) -> None:
    for call, name in (
        (lambda: model.model(**one), r"Idefics2\(.*input_ids=.*pixel_values="),
        (lambda: model.model.vision_model(pixel_values=one["pixel_values"][0]), r"SiglipTower\(pixel_values="),
        (lambda: model.model.text_model(input_ids=one["input_ids"]), r"Decoder\(input_ids="),
        (lambda: model.model.get_image_features(one["pixel_values"]), r"model\.model\.get_image_features"),
    ):
        with pytest.raises(NotOffered, match=f"{name}.* is not offered here .*; transformers offers it"):
            call()
