"""What is learned from and asked about: texts and images as they follow each other, and which texts are the model's to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from idefics.errors import InputError

__all__ = ["Message", "Sample", "Shown"]


@dataclass(frozen=True, eq=False)
class Shown:
    """An image where it is shown.

    Attributes:
        image: anything that processors take: a Pillow image, a path, an array, what `Processor.prepare` made.
    """

    image: Any


@dataclass(frozen=True, eq=False)
class Message:
    """What one side says before the other answers.

    Attributes:
        role: as chat templates know it: `"user"`, `"assistant"`, `"system"`.
        parts: texts and images in reading order.
        learned: whether these words are what a model is to learn, or in an evaluation to say by itself.
    """

    role: str
    parts: tuple[str | Shown, ...]
    learned: bool = False

    @property
    def text(self) -> str:
        """All texts of the message, one after the other."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[Any]:
        """All images of the message."""
        return [part.image for part in self.parts if isinstance(part, Shown)]

    def plain(self) -> Mapping[str, Any]:
        """The message as chat templates take it, without its images."""
        parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts]
        return {"role": self.role, "content": parts}


@dataclass(frozen=True, eq=False)
class Sample:
    """One conversation about images, or about none.

    Training teaches the learned messages, each from everything before it. An evaluation asks for them in order, and the
    model reads its own earlier answers in their place (`answered`).

    Attributes:
        messages: at least one.
        name: where it comes from, for people who read about it: `"drawings 17"`.

    Raises:
        InputError: there is no message, or a learned one has no words or shows an image.
    """

    messages: tuple[Message, ...]
    name: str

    def __post_init__(self) -> None:
        if not self.messages:
            raise InputError(f"{self.name} has no message; a sample has at least one")
        for number, message in enumerate(self.messages):
            if message.learned and (message.images or not message.text.strip()):
                what = "shows an image" if message.images else "has no words"
                raise InputError(f"message {number} of {self.name} is to be learned and {what}; models answer in words")

    @property
    def images(self) -> list[Any]:
        """All images in reading order."""
        return [image for message in self.messages for image in message.images]

    @property
    def learned(self) -> list[int]:
        """Which of `messages` are learned."""
        return [number for number, message in enumerate(self.messages) if message.learned]

    def plain(self) -> list[Mapping[str, Any]]:
        """All messages as chat templates take them; `images` are apart."""
        return [message.plain() for message in self.messages]

    def answered(self, answers: Sequence[str]) -> Sample | None:
        """What is to be answered next, once these answers were given in the place of the first learned messages.

        Returns:
            Everything before the next learned message; None if there is none.
        """
        given: Iterator[str] = iter(answers)
        said: list[Message] = []
        for message in self.messages:
            if message.learned:
                answer = next(given, None)
                if answer is None:
                    return Sample(tuple(said), self.name)
                message = replace(message, parts=(answer,), learned=False)
            said.append(message)
        return None
