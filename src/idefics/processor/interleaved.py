"""Prompts of the first IDEFICS, in all their forms, as pieces: texts as they will be written, None for an image.

Which spaces are dropped, what counts as a URL and where `<end_of_utterance>` goes are the reference's rules: the models
were trained on prompts made by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from idefics.errors import InputError
from idefics.processor.base import FAKE_TOKEN, IMAGE_TOKEN
from idefics.processor.fetch import is_image, is_image_reference
from idefics.processor.rows import arrange, image_rows

__all__ = ["Piece", "pieces_apart", "pieces_between", "pieces_of_text"]

Piece = str | None
Rows = list[tuple[list[Piece], list[Any]]]

# Any scheme: what looks like a URL must be fetched or fail, never be read to the model as words.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/]\S*")


def pieces_between(prompts: Any, *, mark: str) -> Rows:
    """Pieces and images of prompts whose images stand between their texts.

    Args:
        prompts: a list of texts, URLs and images, or a list of such lists.
        mark: written between texts that follow each other.

    Raises:
        InputError: a value is of the wrong kind; says where.
    """
    if not isinstance(prompts, list | tuple):
        raise InputError(
            f"prompts must be a list of texts, URLs and images, or a list of such lists, not {type(prompts).__name__}; "
            "one text alone is [text]"
        )
    if not any(isinstance(prompt, list | tuple) for prompt in prompts):
        return [_pieces(prompts, "prompts", mark)]
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, list | tuple):
            raise InputError(f"prompts[{i}] is {type(prompt).__name__} among lists; give a list for every prompt")
    return [_pieces(prompt, f"prompts[{i}]", mark) for i, prompt in enumerate(prompts)]


def pieces_apart(text: Any, images: Any, *, bos: str) -> Rows:
    """Pieces and images of texts whose images are given apart.

    Where a text holds placeholders, the images stand there. Otherwise the order is the reference's, odd as it is: one
    image per text stands before it, a list per text behind it.

    Args:
        text: one text or a list of them; may begin with `bos`.
        images: one image per placeholder or per text, or a list per text.
        bos: not repeated.

    Raises:
        ImageCountError: placeholders and images differ in number.
        InputError: a value is of the wrong kind, or texts and images differ in number.
    """
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(one, str) for one in texts):
        raise InputError("with images given apart, text must be a text or a list of texts; images stand apart or between")
    nested = isinstance(images, list | tuple) and any(isinstance(row, list | tuple) for row in images)
    rows = image_rows(images) if images is not None else []
    if any(IMAGE_TOKEN in one for one in texts) or not any(rows):
        written, filled = arrange(texts, images, placeholder=IMAGE_TOKEN)
        pieces = [pieces_of_text(one.removeprefix(bos)) for one in written or ()]
        return list(zip(pieces, filled or (), strict=True))
    if not nested:
        rows = [[image] for image in rows[0]]
    if len(rows) != len(texts):
        raise InputError(
            f"{len(texts)} text(s) but {len(rows)} {'rows of images' if nested else 'image(s)'}; give one per text, a list "
            f"of images for every text, or write {IMAGE_TOKEN} where each image belongs"
        )
    stripped = [one.strip(" ") for one in texts]
    if not nested:
        return [([None, one], row) for one, row in zip(stripped, rows, strict=True)]
    return [([one, *[None] * len(row)], row) for one, row in zip(stripped, rows, strict=True)]


def pieces_of_text(text: str) -> list[Piece]:
    """Pieces of a text with placeholders, whose fake tokens, if it has them already, are left out.

    >>> pieces_of_text("a<image><fake_token_around_image>b<image>")
    ['a', None, 'b', None]
    """
    bare = text.replace(FAKE_TOKEN + IMAGE_TOKEN, IMAGE_TOKEN).replace(IMAGE_TOKEN + FAKE_TOKEN, IMAGE_TOKEN)
    pieces: list[Piece] = []
    for i, part in enumerate(bare.split(IMAGE_TOKEN)):
        pieces += [None] * (i > 0) + [part] * bool(part)
    return pieces


def _pieces(items: Sequence[Any], where: str, mark: str) -> tuple[list[Piece], list[Any]]:
    if not items:
        raise InputError(f"{where} is empty; a prompt has at least one text or image")
    images: list[Any] = []
    return list(_written(items, where, mark, images)), images


def _written(items: Sequence[Any], where: str, mark: str, images: list[Any]) -> Iterator[Piece]:
    after_text = False
    for j, item in enumerate(items):
        piece = item.strip(" ") if isinstance(item, str) else item
        if is_image(piece) or is_image_reference(piece) or (isinstance(piece, str) and _URL.fullmatch(piece)):
            images.append(piece)
            after_text = False
            yield None
        elif isinstance(piece, str):
            yield f"{mark}{piece}" if after_text else piece
            after_text = True
        else:
            raise InputError(f"{where}[{j}] is {type(item).__name__}; a text, a URL or an image is due")
