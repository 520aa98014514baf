"""Prompts as clients write them, with images in markdown or in messages, to prompts with `<image>` and a list of references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idefics.errors import InputError, TemplateError
from idefics.processor.base import Processor
from idefics.processor.messages import normalise

__all__ = ["Prompt", "prompt_of_markdown", "prompt_of_messages"]

_BEGIN, _END = "![](", ")"


@dataclass(frozen=True)
class Prompt:
    """A text and its images.

    Attributes:
        text: with one `<image>` per image.
        references: http(s) and data URLs, in reading order.
    """

    text: str
    references: tuple[str, ...] = ()

    def written(self, placeholder: str) -> str:
        """The text with its images written as `![](URL)`."""
        pieces = self.text.split(placeholder)
        return pieces[0] + "".join(f"![]({url}){piece}" for url, piece in zip(self.references, pieces[1:], strict=True))


def prompt_of_markdown(text: str, processor: Processor) -> Prompt:
    """A raw prompt in which `![](URL)` stands for an image; no spaces are needed around it.

    Raises:
        InputError: the text holds one of the tokens that images become.

    >>> from types import SimpleNamespace
    >>> tokens = SimpleNamespace(image_token="<image>", fake_image_token="<fake_token_around_image>")
    >>> prompt_of_markdown("User:![](https://a.b/c.png)What is this?", tokens)
    Prompt(text='User:<image>What is this?', references=('https://a.b/c.png',))
    """
    _refuse_image_tokens(text, processor, "inputs")
    pieces = _pieces(text)
    return Prompt(processor.image_token.join(pieces[::2]), tuple(pieces[1::2]))


def prompt_of_messages(messages: Sequence[Mapping[str, Any]], processor: Processor) -> Prompt:
    """The prompt of a chat, ending where the assistant goes on. Images are parts of messages, or markdown in their texts.

    Raises:
        TemplateError: the messages are unusable, or the checkpoint has no chat template.
        InputError: a text holds one of the tokens that images become, or an image part no URL.
    """
    plain, carried = normalise(messages)
    rest = iter(carried)
    references: list[str] = []
    rewritten = []
    for index, message in enumerate(plain):
        where = f"messages[{index}]"
        extra = sorted(key for key in message if key not in ("role", "content", "name") and message[key] is not None)
        if extra:
            raise TemplateError(f"{where} has {extra[0]!r}, which this model cannot read; tools are not supported")
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text":
                parts += _parts(part["text"], processor, where, references)
            else:
                reference = next(rest)
                if not isinstance(reference, str):
                    raise InputError(f"{where} has an image part without a URL; give image_url: {{'url': ...}}")
                references.append(reference.strip())
                parts.append({"type": "image"})
        rewritten.append({"role": message["role"], "content": parts or [{"type": "text", "text": ""}]})
    return Prompt(processor.apply_chat_template(rewritten, add_generation_prompt=True), tuple(references))


def _parts(text: str, processor: Processor, where: str, references: list[str]) -> list[dict[str, Any]]:
    _refuse_image_tokens(text, processor, where)
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(_pieces(text)):
        if index % 2:
            references.append(piece)
            parts.append({"type": "image"})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _pieces(text: str) -> list[str]:
    """Text, URL, text, URL, ..., text. Takes time linear in the text, which a pattern that looks for each end would not."""
    pieces, at = [], 0
    while (begin := text.find(_BEGIN, at)) >= 0 and (end := text.find(_END, begin)) >= 0:
        pieces += [text[at:begin], text[begin + len(_BEGIN) : end].strip()]
        at = end + len(_END)
    return [*pieces, text[at:]]


def _refuse_image_tokens(text: str, processor: Processor, where: str) -> None:
    for token in (processor.image_token, processor.fake_image_token):
        if token in text:
            raise InputError(
                f"{where} holds {token}, which stands for an image; write images as ![](URL) or as image_url parts"
            )
