"""What is learned: answers and the token that ends each, read as they are when the model is asked; nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

import fakes
import mistral_tokenizer
from idefics.data.collate import collate
from idefics.data.labels import labelled
from idefics.data.sample import Message, Sample, Shown
from idefics.data.sources.drawings import DrawnSamples
from idefics.errors import InputError, TemplateError
from idefics.processor.base import Processor
from idefics.processor.families import load_processor
from idefics.processor.idefics1 import IdeficsProcessor
from idefics.processor.idefics2 import Idefics2Processor
from idefics.weights.files import EMBEDDED
from learning import tiny_learner

PROCESSORS: dict[str, Callable[[], Processor]] = {
    "idefics2, as published, split": lambda: Idefics2Processor.from_folder(mistral_tokenizer.checkpoint()),
    "idefics, as published": lambda: IdeficsProcessor.from_folder(mistral_tokenizer.checkpoint_of_2023()),
    "embedded": lambda: load_processor(EMBEDDED),
    "idefics2, tiny": lambda: tiny_learner("idefics2")[1],
    "idefics, tiny": lambda: tiny_learner("idefics")[1],
}
PICTURE = Image.fromarray(np.full((90, 120, 3), 127, dtype=np.uint8))


@pytest.fixture(scope="module", params=PROCESSORS)
def processor(request: pytest.FixtureRequest) -> Processor:
    return PROCESSORS[request.param]()


def user(*parts: str | Shown) -> Message:
    return Message("user", parts)


def says(text: str, *, learned: bool = True) -> Message:
    return Message("assistant", (text,), learned=learned)


TALKS = {
    "three turns about two images": (
        user(Shown(PICTURE), Shown(PICTURE), "What is this?"), says("a star"),
        user("How many?"), says("12, I think."), user("Thanks"), says("you are welcome"),
    ),
    "no image": (user("hello"), says("hello")),
    "an image after the text": (user("What is this?", Shown(PICTURE)), says("7")),
    "an image in a later turn": (user("hello"), says("hi"), user(Shown(PICTURE), "And this?"), says("a moon\nand a sun")),
    "only the last": (user(Shown(PICTURE), "One?"), says("one", learned=False), user("Two?"), says("two")),
    "only the first": (user(Shown(PICTURE), "One?"), says("one"), user("Two?"), says("two", learned=False), user("Three?")),
    "special tokens in texts": (
        user(Shown(PICTURE), "Is <image> or <end_of_utterance>\nAssistant: yes a token?"),
        says("</s> is, <end_of_utterance> too"),
    ),
    "beyond any vocabulary": (user("Was ist das?"), says("ein Schlüssel 鍵 🗝")),
}  # fmt: skip


@pytest.mark.parametrize("talk", TALKS)
def test_answers_and_their_ends_are_learned_and_nothing_else(processor: Processor, talk: str) -> None:
    """Each answer is learned after the very ids that the model is asked with, and is what decoding it gives."""
    sample = Sample(TALKS[talk], talk)
    found = labelled(sample, processor)
    end = processor.end_of_utterance_id
    covered = 0
    for answer, number in enumerate(sample.learned):
        before = Sample(sample.messages[:number], talk)
        asked = processor.inputs([processor.chat_prompt(before.plain())], [before.images]).input_ids_BT[0].tolist()
        places = [place for place, each in enumerate(found.answers) if each == answer]
        assert list(found.ids[: places[0]]) == asked
        assert places == list(range(places[0], places[-1] + 1))
        words = [found.ids[place] for place in places]
        assert words[-1] == end
        assert end not in words[:-1]
        assert processor.decode(words[:-1]).strip() == sample.messages[number].text
        covered += len(places)
    assert found.learned == covered
    assert found.answers[-1] == len(sample.learned) - 1, "nothing follows what is learned last"
    assert found.ids.count(processor.image_token_id) % max(1, len(sample.images)) == 0


def test_a_batch_holds_what_its_samples_hold(processor: Processor) -> None:
    samples = [Sample(TALKS[name], name) for name in ("an image in a later turn", "no image", "three turns about two images")]
    batch = collate(samples, processor)
    labels_BT = batch.labels(-100)
    parts = len(processor.prepare(PICTURE).parts)
    assert batch.inputs.images_per_row == (parts, 0, 2 * parts)
    for row, sample in enumerate(samples):
        alone = labelled(sample, processor)
        length = len(alone.ids)
        assert batch.inputs.input_ids_BT[row, :length].tolist() == list(alone.ids)
        assert batch.inputs.attention_mask_BT[row].tolist() == [1] * length + [0] * (
            batch.inputs.input_ids_BT.shape[1] - length
        )
        due = [token if answer >= 0 else -100 for token, answer in zip(alone.ids, alone.answers, strict=True)]
        assert labels_BT[row, :length].tolist() == due
        assert bool((labels_BT[row, length:] == -100).all())
    assert batch.learned == sum(labelled(sample, processor).learned for sample in samples)


def test_drawings_are_samples() -> None:
    samples = DrawnSamples(seed=3)
    one, again, other = samples[5], samples[5], samples[6]
    assert [message.text for message in one.messages] == [message.text for message in again.messages]
    assert [image.tobytes() for image in one.images] == [image.tobytes() for image in again.images]
    assert [message.text for message in one.messages] != [message.text for message in other.messages]
    assert len(one.learned) == 3
    assert {len(samples[number].images) for number in range(8)} == {1, 2}
    batch = collate([one, other], load_processor(EMBEDDED))
    assert batch.to(dtype=torch.bfloat16).learned == batch.learned > 12


class TestRefused:
    @pytest.fixture
    def processor(self) -> Processor:
        return tiny_learner("idefics2")[1]

    @pytest.mark.parametrize(
        ("messages", "said"),
        [
            ((user("hello"), says("hi", learned=False)), "it holds nothing to learn"),
            ((says("hi"),), "it begins with what is to be learned"),
            ((user("a"), says("b"), user(Shown(PICTURE))), "it shows an image after"),
        ],
    )
    def test_samples(self, processor: Processor, messages: tuple[Message, ...], said: str) -> None:
        with pytest.raises(InputError, match=said):
            labelled(Sample(messages, "it"), processor)

    @pytest.mark.parametrize(
        ("template", "said"),
        [
            ("{% for m in messages %}{{ m.content[0].text }} {% endfor %}", "writes no <end_of_utterance>"),
            # Whoever asks is told to be brief, and nothing of that is left in the answered talk.
            (
                "{% for m in messages %}{{ m.content[0].text }}<end_of_utterance>{% endfor %}"
                "{% if add_generation_prompt %}Be brief:{% endif %}",
                "writes message 1 of it otherwise once it is answered",
            ),
            (
                "{% for m in messages %}{{ ' r' if m.role == 'assistant' }}{{ m.content[0].text }}"
                "<end_of_utterance>{% endfor %}"
                "{% if add_generation_prompt %}{{ ' r' }}{% endif %}",
                "reads ' red' as one token, of which only 'ed' is the answer",
            ),
        ],
    )
    def test_templates(self, processor: Processor, template: str, said: str) -> None:
        processor.chat_template = template
        with pytest.raises(TemplateError, match=said):
            labelled(Sample((user("color?"), says("ed")), "it"), processor)

    def test_a_base_model_has_no_template(self) -> None:
        with pytest.raises(TemplateError, match="no chat template"):
            labelled(Sample((user("color?"), says("red")), "it"), fakes.tiny_processor(end_of_utterance=False))

    def test_an_empty_batch(self, processor: Processor) -> None:
        with pytest.raises(InputError, match="no samples"):
            collate([], processor)
