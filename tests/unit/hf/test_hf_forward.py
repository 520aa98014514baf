"""`forward`: labels, what is not counted, outputs, and text that does not match its images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from idefics import Idefics2ForConditionalGeneration, Idefics2Processor
from idefics.errors import InputError, OptionError

DEVICE = "cpu"


@pytest.fixture
def inputs(processor: Idefics2Processor, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    texts = ["<image>In the <image> it is red", "no <image>"]
    return dict(processor(text=texts, images=[pictures[:2], pictures[2:]], padding=True, return_tensors="pt"))


def test_the_loss_is_the_mean_over_labels_that_count(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, inputs: dict[str, torch.Tensor]
) -> None:
    labels = inputs["input_ids"].clone()
    labels[0, -2:] = -100
    out = model(**inputs, labels=labels)
    counted, losses = 0, 0.0
    for row in range(2):
        for t in range(1, labels.shape[1]):
            label = int(labels[row, t])
            real = bool(inputs["attention_mask"][row, t]) and bool(inputs["attention_mask"][row, t - 1])
            if real and label not in (-100, processor.image_token_id):
                losses += F.cross_entropy(out.logits[row, t - 1][None], labels[row, t][None]).item()
                counted += 1
    assert counted > 10
    assert out.loss.item() == pytest.approx(losses / counted, rel=1e-5)


@pytest.mark.parametrize("ignored", ["-100", "image token"])
def test_a_label_that_is_ignored_changes_nothing(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, inputs: dict[str, torch.Tensor], ignored: str
) -> None:
    value = -100 if ignored == "-100" else processor.image_token_id
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = value
    expected = model(**inputs, labels=labels).loss
    counted = labels.clone()
    counted[0, -4] = 7
    assert model(**inputs, labels=counted).loss != expected
    padding = labels.clone()
    padding[inputs["attention_mask"] == 0] = 7
    assert bool((padding == 7).any())
    assert model(**inputs, labels=padding).loss == expected


def test_a_loss_has_gradients_everywhere(model: Idefics2ForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> None:
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad()
    assert not missing


def test_outputs_go_by_name_and_by_position(model: Idefics2ForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        plain = model(**inputs)
        taught = model(**inputs, labels=inputs["input_ids"])
    assert plain.loss is None
    assert plain[0] is plain.logits is plain["logits"]
    assert taught[0] is taught.loss
    loss, logits = taught[:2]
    assert loss is taught.loss
    assert logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)
    assert plain.image_hidden_states.shape == (3, 4, 32)


def test_padding_on_either_side_is_inert(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, pictures: list[Image.Image]
) -> None:
    texts = ["<image>In the image it is red", "no"]
    results = []
    for side in ("left", "right"):
        batch = processor(text=texts, images=[pictures[:1], []], padding=True, padding_side=side, return_tensors="pt")
        with torch.inference_mode():
            out = model(**batch, labels=batch.input_ids)
        results.append((out.loss.item(), out.logits[batch.attention_mask.bool()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=1e-4)


def test_image_hidden_states_stand_for_the_images(
    model: Idefics2ForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    with torch.inference_mode():
        first = model(**inputs)
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        again = model(**tokens, image_hidden_states=first.image_hidden_states)
        features = model.get_image_features(inputs["pixel_values"], inputs["pixel_attention_mask"])
    torch.testing.assert_close(again.logits, first.logits)
    torch.testing.assert_close(features, first.image_hidden_states)
    with pytest.raises(OptionError, match="same images twice"):
        model(**inputs, image_hidden_states=first.image_hidden_states)
    with pytest.raises(
        InputError, match=r"hold 12 image token\(s\) but image_hidden_states of 2 image\(s\) of 4 latents need 8"
    ):
        model(**tokens, image_hidden_states=first.image_hidden_states[1:])


def test_text_and_images_must_match(model: Idefics2ForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> None:
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:, :1], "pixel_attention_mask": None}
    with pytest.raises(InputError, match=r"prompt 1 holds 8 image token\(s\) but its 1 image\(s\) of 4 latents need 4"):
        model(**fewer)
    with pytest.raises(InputError, match=r"prompt 1 holds 8 image token\(s\) but its 0 image\(s\)"):
        model(inputs["input_ids"], inputs["attention_mask"])
    with pytest.raises(InputError, match=r"prompt 1 holds 8 image token\(s\) but its 0 image\(s\)"):
        model.generate(inputs["input_ids"], inputs["attention_mask"], max_new_tokens=1)
    swapped = {**inputs, "input_ids": inputs["input_ids"].flip(0), "attention_mask": inputs["attention_mask"].flip(0)}
    with pytest.raises(InputError, match="prompt 1 holds 4"):
        model(**swapped)
    with pytest.raises(InputError, match=r"attention_mask is \(2, 3\), input_ids"):
        model(inputs["input_ids"], inputs["attention_mask"][:, :3])
    with pytest.raises(InputError, match=r"input_ids must be \(batch, tokens\)"):
        model(inputs["input_ids"][0])


def test_inputs_move_as_the_cards_move_them(
    model: Idefics2ForConditionalGeneration, processor: Idefics2Processor, pictures: list[Image.Image]
) -> None:
    batch = processor(text="<image>what", images=pictures[0], return_tensors="pt")
    plain = {k: v.to(DEVICE) for k, v in batch.items()}
    assert set(plain) == {"input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"}
    moved = processor(text="<image>what", images=pictures[0], return_tensors="pt").to(DEVICE, torch.bfloat16)
    assert moved.pixel_values.dtype == torch.bfloat16
    assert moved.input_ids.dtype == moved.pixel_attention_mask.dtype == torch.int64
    with torch.inference_mode():
        torch.testing.assert_close(model(**moved.to(torch.float32)).logits, model(**plain).logits, atol=0.2, rtol=0.1)
    ids = model.generate(**plain, max_new_tokens=3)
    assert torch.equal(ids, model.generate(**batch.to(model.device), max_new_tokens=3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_a_low_precision_takes_float_pixels(
    tiny_checkpoint: object, inputs: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    model = Idefics2ForConditionalGeneration.from_pretrained(str(tiny_checkpoint)).to(dtype)
    assert model.dtype == dtype
    with torch.inference_mode():
        assert model(**inputs).logits.dtype == dtype
    assert model.to("cpu") is model
    assert model.to(torch.float32).dtype == torch.float32
    assert model.device == torch.device("cpu")


def test_images_of_another_familys_names_are_refused(tiny_checkpoint: Path) -> None:
    model = Idefics2ForConditionalGeneration.from_pretrained(tiny_checkpoint)
    with pytest.raises(OptionError, match="does not know image_attention_mask"):
        model.inputs(torch.tensor([[1, 5]]), image_attention_mask=torch.zeros(1, 2, 1))


@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.int32])
def test_a_mask_of_any_kind(model: Idefics2ForConditionalGeneration, kind: torch.dtype) -> None:
    ids, mask = torch.tensor([[0, 1, 5, 9]]), torch.tensor([[0, 1, 1, 1]])
    due = model.generate(ids, mask, max_new_tokens=2, eos_token_id=[])
    model.drop_engine()  # how large the next one is follows from the mask
    assert torch.equal(model.generate(ids, mask.to(kind), max_new_tokens=2, eos_token_id=[]), due)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids, mask.to(kind)).logits, model(ids, mask).logits)


def test_tensors_that_cannot_be_read_are_named(
    model: Idefics2ForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    ids = torch.tensor([[1, 5, 9]])
    for bad in (ids.float(), ids[:0]):
        with pytest.raises(InputError, match=r"input_ids must be whole numbers of one prompt or more, not \((1|0), 3\) torch"):
            model(bad)
        with pytest.raises(InputError, match=r"input_ids must be whole numbers of one prompt or more"):
            model.generate(bad)
    with pytest.raises(InputError, match=r"labels are \(1, 2\), input_ids \(1, 3\): each token has one"):
        model(ids, labels=ids[:, :2])
    with pytest.raises(InputError, match=r"image_hidden_states must be \(images, latents, hidden\), not \(4, 32\)"):
        model(ids, image_hidden_states=torch.zeros(4, 32))
    with pytest.raises(InputError, match=r"token id 1000000 is outside"):
        model(torch.where(inputs["input_ids"] == 1, 10**6, inputs["input_ids"]), image_hidden_states=torch.zeros(3, 4, 32))
