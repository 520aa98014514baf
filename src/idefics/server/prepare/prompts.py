"""Prompts as clients write them, with images in markdown or in messages, to prompts with `<image>` and a list of references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from idefics.errors import InputError, TemplateError
from idefics.processor.base import Processor
from idefics.processor.literal import unmarked
from idefics.processor.messages import normalise

__all__ = ["Prompt", "prompt_of_markdown", "prompt_of_messages"]

_BEGIN, _END = "![](", ")"
_KEYS = ("role", "content", "name", "cache_control")  # the last asks for what is done for everybody
_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """A text and its images.

    Attributes:
        text: with one `<image>` per image; of a chat with marks (`idefics.processor.literal`).
        references: http(s) and data URLs, in reading order.
    """

    text: str
    references: tuple[str, ...] = ()

    @property
    def characters(self) -> int:
        """Of the text and of what stands for images in it."""
        return len(unmarked(self.text)) + sum(map(len, self.references))

    def written(self, placeholder: str) -> str:
        """The text as people read it, with its images written as `![](URL)`.

        Raises:
            InputError: there are more placeholders than images, or fewer.
        """
        pieces = self.text.split(placeholder)
        if len(pieces) != len(self.references) + 1:
            raise InputError(f"the prompt holds {len(pieces) - 1} {placeholder} for {len(self.references)} images")
        images = zip(self.references, pieces[1:], strict=True)
        return unmarked(pieces[0] + "".join(f"![]({url}){piece}" for url, piece in images))


def prompt_of_markdown(text: str, processor: Processor, *, images: int) -> Prompt:
    """A raw prompt in which `![](URL)` stands for an image; no spaces are needed around it.

    Args:
        text: of the prompt.
        processor: of the model.
        images: at most.

    Raises:
        InputError: the text holds one of the tokens that images become, or too many images.

    >>> from types import SimpleNamespace
    >>> tokens = SimpleNamespace(image_token="<image>", fake_image_token="<fake_token_around_image>")
    >>> prompt_of_markdown("User:![](https://a.b/c.png)What is this?", tokens, images=1)
    Prompt(text='User:<image>What is this?', references=('https://a.b/c.png',))
    """
    for token in (processor.image_token, processor.fake_image_token):
        if token in text:
            raise InputError(f"the prompt holds {token}, which stands for an image; write images as ![](URL)")
    pieces = _pieces(text, before=0, images=images)
    return Prompt(processor.image_token.join(pieces[::2]), tuple(pieces[1::2]))


def prompt_of_messages(messages: Sequence[Mapping[str, Any]], processor: Processor, *, images: int) -> Prompt:
    """The prompt of a chat, ending where the assistant goes on. Images are parts of messages, or markdown in their texts.

    What the assistant said is the model's own: markdown in it asks for no image. Special tokens in texts are text.

    Args:
        messages: of the chat.
        processor: of the model.
        images: at most.

    Raises:
        TemplateError: the messages are unusable, or the checkpoint has no chat template.
        InputError: an image part has no URL, or there are too many images.
    """
    plain, carried = normalise(messages)
    if len(carried) > images:
        raise _too_many(len(carried), images)
    rest = iter(carried)
    references: list[str] = []
    rewritten = []
    for index, message in enumerate(plain):
        where = f"messages[{index}]"
        extra = sorted(key for key, value in message.items() if key not in _KEYS and value)
        if extra:
            raise TemplateError(f"{where} has {extra[0]!r}, which this model cannot read; tools are not supported")
        role = message["role"]
        if role not in _ROLES:
            raise TemplateError(f"{where}['role'] must be one of {', '.join(_ROLES)}, not {role[:40]!r}")
        parts: list[dict[str, Any]] = []
        for part in _joined(message["content"]):
            if part["type"] == "text":
                parts += [part] if role == "assistant" else _parts(part["text"], references, images)
            else:
                reference = next(rest)
                if not isinstance(reference, str):
                    raise InputError(f"{where} has an image part without a URL; give image_url: {{'url': ...}}")
                references.append(reference.strip())
                parts.append({"type": "image"})
        rewritten.append({"role": role, "content": parts or [{"type": "text", "text": ""}]})
    if len(references) > images:
        raise _too_many(len(references), images)
    text = processor.chat_prompt(rewritten)
    if text.count(processor.image_token) != len(references):
        raise TemplateError(
            f"the chat template writes {processor.image_token} {text.count(processor.image_token)} times "
            f"for {len(references)} images"
        )
    return Prompt(text, tuple(references))


def _joined(parts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Parts whose neighbouring texts are one, as they are in the prompt."""
    for kind, run in groupby(parts, key=itemgetter("type")):
        if kind == "text":
            yield {"type": "text", "text": "".join(part["text"] for part in run)}
        else:
            yield from run


def _parts(text: str, references: list[str], images: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(_pieces(text, before=len(references), images=images)):
        if index % 2:
            references.append(piece)
            parts.append({"type": "image"})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _pieces(text: str, *, before: int, images: int) -> list[str]:
    """Text, URL, text, URL, ..., text. Takes time linear in the text, which a pattern that looks for each end would not.

    Raises:
        InputError: there are more URLs than `images`, with those `before` the text.
    """
    pieces: list[str] = []
    at = 0
    while (begin := text.find(_BEGIN, at)) >= 0 and (end := text.find(_END, begin)) >= 0:
        if before + len(pieces) // 2 == images:
            raise _too_many(before + text.count(_BEGIN), images)
        pieces += [text[at:begin], text[begin + len(_BEGIN) : end].strip()]
        at = end + len(_END)
    return [*pieces, text[at:]]


def _too_many(given: int, images: int) -> InputError:
    return InputError(f"{given} images in one request are over the limit of {images}; give fewer")
