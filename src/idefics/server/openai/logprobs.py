"""Log-probabilities in OpenAI's two forms: of the tokens that an answer's text is made of, and of no others."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from idefics.processor.tokenizer import Tokenizer
from idefics.server.link.answers import Said

__all__ = ["Shown", "ShownTokens", "chat_logprobs", "completion_logprobs"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what stands for a space in vocabularies of this kind
_HALF = "\N{REPLACEMENT CHARACTER}".encode()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A token as far as it is in the text.

    Attributes:
        data: its bytes there.
        offset: characters of the text before it.
        logprob: of the token.
        top: bytes and log-probability of each alternative, as they would be in the text.
    """

    data: bytes
    offset: int
    logprob: float
    top: tuple[tuple[bytes, float], ...]


class ShownTokens:
    """Finds the tokens of one answer in its text: no end tokens, no stop string, in chats no space before the first word.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._waiting: deque[Said] = deque()  # tokens whose text is held back, because it may still become a stop string
        self._text = b""  # that no token is found for yet
        self._characters = 0

    def push(self, said: Said) -> list[Shown]:
        """Takes the next token and returns those whose text is now out."""
        self._text += said.text.encode()
        if said.finish != "eos" and said.id not in self._special:
            self._waiting.append(said)
        found = []
        while self._waiting:
            data = _bytes(self._tokenizer, self._waiting[0].id)
            taken = self._taken(data, last=said.finish is not None)
            if taken is None:
                break
            shown, text = taken
            token = self._waiting.popleft()
            spaceless = data.startswith(b" ") and not shown.startswith(b" ")
            alternatives = ((_bytes(self._tokenizer, other), logprob) for other, logprob in token.top)
            top = tuple((other.removeprefix(b" ") if spaceless else other, logprob) for other, logprob in alternatives)
            found.append(Shown(data=shown, offset=self._characters, logprob=token.logprob, top=top))
            self._text = self._text[len(text) :]
            self._characters += sum(byte & 0xC0 != 0x80 for byte in text)
        return found

    def _taken(self, data: bytes, *, last: bool) -> tuple[bytes, bytes] | None:
        """What a token of these bytes shows, and what of the text that is; None if its text is not out, or never will be."""
        text, spaceless = self._text, data.removeprefix(b" ")
        if text.startswith(data):
            return data, data
        if not text:
            return None
        if text.startswith(spaceless):
            return spaceless, spaceless
        if len(data) == 1 and text.startswith(_HALF):
            return data, _HALF
        if last or len(text) >= len(data):  # cut by a stop string, or cleaned up
            return text, text
        return None


def chat_logprobs(tokens: Sequence[Shown]) -> dict[str, Any]:
    """Of chat completions: a token with its bytes and its alternatives."""
    content = [
        {**_entry(token.data, token.logprob), "top_logprobs": [_entry(data, logprob) for data, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[Shown], *, alternatives: bool) -> dict[str, Any]:
    """Of completions: four lists; the token itself is always among its alternatives."""
    return {
        "tokens": [_named(token.data) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_alternatives(token) for token in tokens] if alternatives else None,
        "text_offset": [token.offset for token in tokens],
    }


def _alternatives(token: Shown) -> dict[str, float]:
    likeliest_last = sorted(token.top, key=lambda entry: entry[1])  # and so kept, where two look the same
    named = {_named(data): logprob for data, logprob in likeliest_last} | {_named(token.data): token.logprob}
    return dict(sorted(named.items(), key=lambda entry: -entry[1]))


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _named(data), "logprob": logprob, "bytes": list(data)}


def _named(data: bytes) -> str:
    """Bytes as a text; those that are none by themselves as OpenAI writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token is by itself."""
    name = tokenizer.backend.id_to_token(token) or ""
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()
