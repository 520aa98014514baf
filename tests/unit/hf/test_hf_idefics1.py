"""The first generation as the reference spells it: `forward`, `generate` as the model card calls it, files, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import idefics
from fakes import tiny_tokenizer
from gated import BOS, EDGES, EOS, FAKE, IMAGE, SIDE, block, pictures, random_batch, reference_inputs, tiny_config, tiny_raw
from idefics import AutoConfig, AutoModelForImageTextToText, AutoModelForVision2Seq, IdeficsConfig, IdeficsForVisionText2Text
from idefics.config import Idefics1Config
from idefics.errors import ConfigError, InputError, OptionError
from idefics.inputs.padded import used_images


@pytest.fixture(scope="module")
def model() -> IdeficsForVisionText2Text:
    torch.manual_seed(0)
    made = IdeficsForVisionText2Text(tiny_config()).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return made


@pytest.fixture
def several() -> dict[str, torch.Tensor]:
    return reference_inputs(*EDGES["mixed image counts"])


def test_as_the_model_card_calls_it(model: IdeficsForVisionText2Text, several: dict[str, torch.Tensor]) -> None:
    width = several["input_ids"].shape[1]
    free = model.generate(**several, max_length=width + 6)
    assert free.shape == (4, width + 6)
    exit_condition, bad_words_ids = [int(free[0, width + 1])], [[IMAGE], [FAKE], [int(free[1, width])]]
    ids = model.generate(**several, eos_token_id=exit_condition, bad_words_ids=bad_words_ids, max_length=width + 6)
    assert ids[0, width : width + 2].tolist() == free[0, width : width + 2].tolist()
    assert not ids[0, width + 2 :].any()
    assert ids[1, width] != free[1, width]
    alone = model.generate(**reference_inputs([EDGES["mixed image counts"][0][2]], [pictures(1, seed=1)]), max_new_tokens=6)
    assert alone[0, -6:].tolist() == free[2, width:].tolist()
    assert model.generate(**several, max_new_tokens=3, num_beams=2, num_return_sequences=2).shape[0] == 8


def test_text_alone_needs_no_pixels(model: IdeficsForVisionText2Text) -> None:
    ids = torch.tensor([[BOS, 5, 6]])
    out = model(ids)
    assert out.image_hidden_states is None
    blind = model(ids, pixel_values=torch.randn(1, 2, 3, SIDE, SIDE), image_attention_mask=torch.zeros(1, 3, 2))
    assert torch.equal(blind.logits, out.logits)
    assert blind.image_hidden_states.shape == (1, 2, 5, 24)
    assert model.generate(ids, max_new_tokens=2).shape == (1, 5)


def test_images_that_nobody_sees_are_not_encoded(
    model: IdeficsForVisionText2Text, several: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    honest = model.model.encode_images

    def counting(images: Any) -> torch.Tensor:
        encoded.append(len(images))
        return honest(images)

    monkeypatch.setattr(model.model, "encode_images", counting)
    expected = model(**several)
    several["pixel_values"][1] = torch.nan  # a row of text, and what fills it up
    found = model(**several)
    model.drop_engine()  # which may know the images already
    model.generate(**several, max_new_tokens=1)
    assert encoded == [6, 6, 6]
    model.generate(**several, max_new_tokens=1)
    assert encoded == [6, 6, 6]
    real = several["attention_mask"].bool()
    assert torch.equal(found.logits[real], expected.logits[real])


def test_what_each_token_sees() -> None:
    mask = torch.tensor([[[0, 1, 0], [0, 0, 0], [0, 0, 1]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]]])
    seen, used = used_images(torch.zeros(2, 3, 3, 2, 2), mask, torch.tensor([[1, 1, 1], [0, 1, 1]]))
    assert seen.tolist() == [[0, -1, 1], [-1, 0, 0]]
    assert used.tolist() == [[False, True, True], [True, False, False]]
    boolean, _ = used_images(torch.zeros(2, 3, 3, 2, 2), mask.bool(), torch.ones(2, 3))
    assert boolean.tolist() == [[0, -1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_attention_mask": torch.ones(4, 13, 3)}, r"token \d+ of prompt 1 sees 3 images \(1, 2, 3\)"),
        ({"image_attention_mask": None}, "pixel_values need image_attention_mask"),
        ({"image_attention_mask": torch.zeros(4, 13, 2)}, r"image_attention_mask is \(4, 13, 2\), attention_mask \(4, 13\)"),
        ({"image_attention_mask": torch.zeros(4, 13)}, r"image_attention_mask is \(4, 13\)"),
        ({"pixel_values": torch.zeros(3, 3, 3, SIDE, SIDE)}, r"pixel_values \(3, 3, 3, 28, 28\): they must agree"),
        ({"pixel_values": torch.zeros(4, 3, SIDE, SIDE)}, r"pixel_values must be \(batch, images"),
        ({"pixel_values": torch.zeros(4, 3, 3, 30, SIDE)}, "an image of 28x30 pixels; this model takes 28x28"),
        ({"attention_mask": torch.ones(4, 3)}, r"attention_mask is \(4, 3\), input_ids"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_inputs_that_do_not_fit(
    model: IdeficsForVisionText2Text, several: dict[str, torch.Tensor], change: dict[str, Any], message: str
) -> None:
    assert several["input_ids"].shape == (4, 13)
    for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=1)):
        with pytest.raises(InputError, match=message):
            call(**{**several, **change})


def test_names_of_the_other_family_are_refused(model: IdeficsForVisionText2Text) -> None:
    with pytest.raises(OptionError, match="unknown generation option 'pixel_attention_mask'"):
        model.generate(torch.tensor([[1, 5]]), pixel_attention_mask=torch.ones(1), max_new_tokens=1)


def test_the_loss_is_the_mean_over_labels_that_count(
    model: IdeficsForVisionText2Text, several: dict[str, torch.Tensor]
) -> None:
    labels = several["input_ids"].clone()
    labels[3, -4:] = -100
    out = model(**several, labels=labels)
    mask, losses = several["attention_mask"], []
    for row in range(4):
        for t in range(1, labels.shape[1]):
            if mask[row, t] and mask[row, t - 1] and labels[row, t] != -100:
                losses.append(F.cross_entropy(out.logits[row, t - 1][None], labels[row, t][None]).item())
    assert len(losses) > 15
    assert out.loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    padding = torch.where(mask == 0, 7, labels)
    assert model(**several, labels=padding).loss == out.loss
    images = torch.where(labels == IMAGE, 7, labels)
    assert model(**several, labels=images).loss != out.loss, "image tokens are text to this family"


def test_a_tuple_where_one_is_asked_for(model: IdeficsForVisionText2Text, several: dict[str, torch.Tensor]) -> None:
    named = model(**several, labels=several["input_ids"], use_cache=True, return_dict=True)
    loss, logits, states = model(**several, labels=several["input_ids"], use_cache=False, return_dict=False)
    assert torch.equal(loss, named.loss)
    assert torch.equal(logits, named.logits)
    assert torch.equal(states, named.image_hidden_states)
    assert len(model(torch.tensor([[BOS, 5]]), return_dict=False)) == 1


def test_files_both_ways(tmp_path: Path, model: IdeficsForVisionText2Text) -> None:
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    inputs = reference_inputs(*random_batch(3, 2))
    expected = model(**inputs).logits
    for cls in (IdeficsForVisionText2Text, AutoModelForVision2Seq, AutoModelForImageTextToText):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is IdeficsForVisionText2Text
        assert torch.equal(loaded(**inputs).logits, expected)
        assert loaded.generation_config == {"eos_token_id": EOS, "pad_token_id": 0}
    for config in (AutoConfig.from_pretrained(tmp_path), IdeficsConfig.from_pretrained(tmp_path), loaded.config):
        assert type(config) is IdeficsConfig
        assert config == IdeficsConfig.of(tiny_config())
    with pytest.raises(ConfigError, match="Idefics2Config cannot hold model_type = 'idefics'"):
        idefics.Idefics2ForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="Idefics2Config cannot hold model_type = 'idefics'"):
        idefics.Idefics2Config.from_pretrained(tmp_path)


def test_float16_is_warned_of_once(tmp_path: Path, model: IdeficsForVisionText2Text, tiny_checkpoint: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="overflow in float16, and answers become NaN; use bfloat16") as caught:
        assert IdeficsForVisionText2Text.from_pretrained(tmp_path, torch_dtype="float16").dtype == torch.float16
    assert len(caught) == 1
    IdeficsForVisionText2Text.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    AutoModelForVision2Seq.from_pretrained(tiny_checkpoint, torch_dtype="float16")


def test_a_config_of_keywords() -> None:
    config = IdeficsConfig(**tiny_raw())
    assert config == IdeficsConfig.of(tiny_config())
    assert isinstance(config, Idefics1Config)
    assert IdeficsConfig.from_dict(config.to_dict()) == config
    changed = dataclasses.replace(config, dtype="bfloat16")
    assert (type(changed), changed.dtype) == (IdeficsConfig, "bfloat16")
    parts = IdeficsConfig(**{**tiny_raw(), "vision_config": config.vision_config, "perceiver_config": config.perceiver_config})
    assert parts == config
    assert IdeficsConfig().text_config.intermediate_size == 11008
    with pytest.raises(ConfigError, match="does not know and so cannot honour: image_token_id"):
        IdeficsConfig(image_token_id=3)


def test_a_listener_is_told_the_end_even_of_a_failure(model: IdeficsForVisionText2Text) -> None:
    class Listener:
        heard: list[torch.Tensor] = []  # noqa: RUF012
        ended = 0

        def put(self, value: torch.Tensor) -> None:
            self.heard.append(value)

        def end(self) -> None:
            self.ended += 1

    listener = Listener()
    inputs = reference_inputs([[BOS, *block(1), 5]], [pictures(1)])
    out = model.generate(**inputs, max_new_tokens=3, streamer=listener)
    assert torch.cat([value.flatten() for value in listener.heard]).tolist() == out[0].tolist()
    with pytest.raises(InputError, match="exceed the model's 256 positions"):
        model.generate(**inputs, max_new_tokens=300, streamer=listener)
    assert listener.ended == 2


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of an instruct model: weights, tokenizer, image settings."""
    folder = tmp_path_factory.mktemp("card")
    tokenizer = tiny_tokenizer()
    sizes = tiny_raw(vocab_size=len(tokenizer) - 3, dtype="bfloat16")
    torch.manual_seed(1)
    IdeficsForVisionText2Text(IdeficsConfig(**sizes)).to(torch.bfloat16).save_pretrained(folder)
    idefics.IdeficsProcessor(idefics.IdeficsImageProcessor(image_size=SIDE), tokenizer).save_pretrained(folder)
    return folder


def test_the_model_cards_snippet(card: Path) -> None:
    colours = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    model = IdeficsForVisionText2Text.from_pretrained(card, torch_dtype=torch.bfloat16).to("cpu")
    processor = idefics.AutoProcessor.from_pretrained(card)
    assert type(processor) is idefics.IdeficsProcessor
    prompts = [
        [
            "User: What is in this image?",
            colours[0],
            "<end_of_utterance>",
            "\nAssistant: it is red<end_of_utterance>",
            "\nUser:",
            colours[1],
            "And this?<end_of_utterance>",
            "\nAssistant:",
        ],
        ["User: no image<end_of_utterance>", "\nAssistant:"],
    ]
    inputs = processor(prompts, add_end_of_utterance_token=False, return_tensors="pt").to("cpu")
    exit_condition = processor.tokenizer("<end_of_utterance>", add_special_tokens=False).input_ids
    bad_words_ids = processor.tokenizer(["<image>", "<fake_token_around_image>"], add_special_tokens=False).input_ids
    assert (len(exit_condition), [len(ids) for ids in bad_words_ids]) == (1, [1, 1])
    width = inputs["input_ids"].shape[1]
    options = {"eos_token_id": exit_condition, "bad_words_ids": bad_words_ids, "max_length": width + 5}
    generated_ids = model.generate(**inputs, **options)
    assert generated_ids.shape[1] <= width + 5
    texts = processor.batch_decode(generated_ids, skip_special_tokens=True)
    assert "What is in this image?" in texts[0]
    assert "<image>" not in texts[0]
    other = processor([[*prompts[0][:1], colours[1], *prompts[0][2:]], prompts[1]], add_end_of_utterance_token=False)
    assert not torch.equal(model(**other).logits[0, -1], model(**inputs).logits[0, -1])
    assert torch.equal(model(**other).logits[1, -1], model(**inputs).logits[1, -1])
    text_only = processor([prompts[1]], add_end_of_utterance_token=False)
    assert model.generate(**text_only, max_new_tokens=2).shape == (1, text_only["input_ids"].shape[1] + 2)


def test_processors_of_either_family_by_their_folder(card: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert type(idefics.AutoProcessor.from_pretrained(tiny_checkpoint)) is idefics.Idefics2Processor
    assert type(idefics.IdeficsProcessor.from_pretrained(card)) is idefics.IdeficsProcessor
    assert type(idefics.IdeficsImageProcessor.from_pretrained(card)) is idefics.IdeficsImageProcessor
    idefics.AutoProcessor.from_pretrained(card).save_pretrained(tmp_path)
    assert type(idefics.AutoProcessor.from_pretrained(tmp_path)) is idefics.IdeficsProcessor, "a folder without a model"


def test_images_are_never_dropped_in_silence(model: IdeficsForVisionText2Text, several: dict[str, torch.Tensor]) -> None:
    ids, mask = several["input_ids"], several["attention_mask"]
    for ask in (model, model.generate, model.inputs):
        with pytest.raises(InputError, match="give pixel_values too"):
            ask(ids, mask, image_attention_mask=several["image_attention_mask"])
    with pytest.raises(InputError, match=r"prompt 1 holds 3 image token\(s\) but no token sees an image"):
        model(ids, mask)
    with pytest.raises(InputError, match="no token sees an image"):
        model.generate(ids, mask, max_new_tokens=1)
    nobody = torch.zeros_like(several["image_attention_mask"])
    with pytest.raises(InputError, match="no token sees an image"):
        model(ids, mask, pixel_values=several["pixel_values"], image_attention_mask=nobody)


def test_inputs_of_the_wrong_name_or_size(model: IdeficsForVisionText2Text) -> None:
    ids = torch.tensor([[BOS, 5]])
    with pytest.raises(OptionError, match="does not know pixel_value"):
        model.inputs(ids, pixel_value=torch.zeros(1, 1, 3, SIDE, SIDE))
    with pytest.raises(InputError, match="hold no images"):
        model(ids, pixel_values=torch.zeros(1, 0, 3, SIDE, SIDE), image_attention_mask=torch.zeros(1, 2, 0))
    with pytest.raises(InputError, match="empty"):
        model(torch.zeros(1, 0, dtype=torch.long), pixel_values=torch.zeros(1, 1, 3, SIDE, SIDE),
              image_attention_mask=torch.zeros(1, 0, 1))  # fmt: skip
