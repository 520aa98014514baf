"""A sample knows what is learned, and what is asked once some of it was answered."""

from __future__ import annotations

import pytest

from idefics.data.sample import Message, Sample, Shown
from idefics.errors import InputError


def talk() -> Sample:
    return Sample(
        (
            Message("user", (Shown("one.png"), "What is this?")),
            Message("assistant", ("a star",), learned=True),
            Message("user", ("And ", Shown("two.png"), "this?")),
            Message("assistant", ("a moon",), learned=True),
        ),
        "a talk",
    )


def test_images_are_in_reading_order() -> None:
    assert talk().images == ["one.png", "two.png"]


def test_plain_messages_carry_no_image() -> None:
    parts = [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": "this?"}]
    assert talk().plain()[2] == {"role": "user", "content": parts}


def test_answers_stand_in_the_place_of_those_that_are_learned() -> None:
    first = talk().answered([])
    assert first is not None
    assert [message.text for message in first.messages] == ["What is this?"]
    assert first.images == ["one.png"]
    second = talk().answered(["a dog"])
    assert second is not None
    assert [message.text for message in second.messages] == ["What is this?", "a dog", "And this?"]
    assert second.learned == []
    assert talk().answered(["a dog", "a cat"]) is None


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((), "no message"),
        ((Message("user", ("Hi",)), Message("assistant", (" ",), learned=True)), "message 1 of it .* no words"),
        ((Message("user", ("Hi",)), Message("assistant", ("a", Shown("a.png")), learned=True)), "message 1 of it .* an image"),
    ],
)
def test_refused(messages: tuple[Message, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sample(messages, "it")
