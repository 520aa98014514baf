"""Texts that are made of characters: half a surrogate pair is none, and no tokenizer takes it."""

from __future__ import annotations

from idefics.errors import InputError

__all__ = ["require_characters"]


def require_characters(text: str, what: str) -> None:
    """Refuses half a surrogate pair, which Python's texts can hold and no encoding can write.

    Args:
        text: of a prompt, a message, an answer to be scored, ...
        what: it is, for people.

    Raises:
        InputError: names it and its place.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(
            f"{what} holds half a surrogate pair ({half!r} at {error.start}), which is no character; "
            "decode the bytes that it came from as UTF-8, with errors='replace' if need be"
        ) from None
