"""Log-probabilities in OpenAI's two forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from idefics.processor.tokenizer import Tokenizer
from idefics.server.answers import Said

__all__ = ["ChatLogprobs", "CompletionLogprobs"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what stands for a space in vocabularies of this kind


class ChatLogprobs:
    """Of chat completions: a token with its bytes and its alternatives.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, tokens: Sequence[Said]) -> dict[str, Any]:
        """The `logprobs` of a choice."""
        content = [
            {
                **self._shown(said.id, said.logprob),
                "top_logprobs": [self._shown(token, logprob) for token, logprob in said.top],
            }
            for said in tokens
        ]
        return {"content": content, "refusal": None}

    def _shown(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = token_text(self._tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}


class CompletionLogprobs:
    """Of completions: four lists.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, tokens: Sequence[Said], *, offset: int = 0) -> dict[str, Any]:
        """The `logprobs` of a choice whose first token stands at `offset` of its text."""
        offsets = []
        for said in tokens:
            offsets.append(offset)
            offset += len(said.text)
        return {
            "tokens": [token_text(self._tokenizer, said.id)[0] for said in tokens],
            "token_logprobs": [said.logprob for said in tokens],
            "top_logprobs": [
                {token_text(self._tokenizer, token)[0]: logprob for token, logprob in said.top} for said in tokens
            ],
            "text_offset": offsets,
        }


def token_text(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """What a token shows by itself, and its bytes; they differ for a byte that is no character alone."""
    name = tokenizer.backend.id_to_token(token) or ""
    byte = _BYTE.fullmatch(name)
    data = bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()
    return data.decode("utf-8", "replace"), data
