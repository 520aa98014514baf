"""From a question and the number of its images to a prompt: one turn of a chat, or, for base models, images and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from idefics.errors import ImageCountError, InputError
from idefics.processor.base import Processor

__all__ = ["prompt_of", "turn"]


def turn(role: str, text: str, images: int | Sequence[Any] = 0) -> dict[str, Any]:
    """One message of a chat: images, then a text.

    Args:
        role: `"user"` or `"assistant"`.
        text: of the message.
        images: how many stand before it, or the images themselves.
    """
    parts = [{"type": "image"}] * images if isinstance(images, int) else [{"type": "image", "image": one} for one in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def prompt_of(processor: Processor, text: str, *, images: int, chat: bool | None = None) -> str:
    """The prompt of a question; a text that holds places for images is taken as it is.

    Args:
        processor: of the model.
        text: question or prompt.
        images: how many there are.
        chat: True asks in a chat's turn, False never does; None does where there is a template and the text has no places.

    Raises:
        ImageCountError: the text's places and the images differ in number.
        InputError: the text is none, or has places although a turn is asked for.
        TemplateError: a turn is asked for and there is no template.
    """
    if not isinstance(text, str):
        raise InputError(f"a prompt is a text, not {type(text).__name__}")
    places = text.count(processor.image_token)
    if chat is None:
        chat = places == 0 and processor.chat_template is not None
    if places and places != images:
        raise ImageCountError(placeholders=places, images=images, where="the prompt")
    if not chat:
        return text if places else processor.image_token * images + text
    if places:
        raise InputError(f"the prompt holds {processor.image_token} and raw=False puts images before it; leave one of them out")
    return processor.chat_prompt([turn("user", text, images)])
