"""The many ways to hand over texts and images, brought to one: a text and a list of images per row.

Accepted, as by the reference: a text or a list of texts with one image, a flat list in reading order, or a list per
text; images alone; and the form of the first IDEFICS, rows of text, URLs and images in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from idefics.errors import ImageCountError, InputError
from idefics.processor.fetch import is_image, is_image_reference

__all__ = ["arrange", "image_rows", "unswap"]


def unswap(text: Any, images: Any) -> tuple[Any, Any]:
    """(text, images) in that order: transformers 5 takes them the other way round when given by position."""
    swapped = _all(text, _imagelike) and (images is None or _all(images, _textlike))
    if not swapped or (images is None and not _any(text, is_image)):
        return text, images
    return images, text


def arrange(text: Any, images: Any, *, placeholder: str) -> tuple[list[str] | None, list[list[Any]] | None]:
    """One text and one list of images per row; None for what was not given.

    Args:
        text: see the top of this file.
        images: likewise.
        placeholder: what stands for an image in a text.

    Raises:
        InputError: neither is given, or a value is of the wrong kind.
        ImageCountError: a row's images do not match its placeholders.
    """
    if text is None:
        if images is None:
            raise InputError("give a text, images, or both")
        return None, image_rows(images)
    if isinstance(text, list | tuple) and (_any(text, is_image) or any(isinstance(row, list | tuple) for row in text)):
        if images is not None:
            raise InputError("images are given both between the texts and apart; give them in one way")
        rows = text if any(isinstance(row, list | tuple) for row in text) else [text]
        return _interleaved(rows, placeholder)
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(one, str) for one in texts):
        raise InputError(f"text must be a text or a list of at least one text, not {_kind(text)}")
    counts = [one.count(placeholder) for one in texts]
    rows_of_images = _distribute(images, counts)
    for i, (count, row) in enumerate(zip(counts, rows_of_images, strict=True)):
        if count != len(row):
            where = "the prompt" if len(texts) == 1 else f"text[{i}]"
            raise ImageCountError(placeholders=count, images=len(row), where=where)
    return list(texts), rows_of_images


def _distribute(images: Any, counts: Sequence[int]) -> list[list[Any]]:
    if images is None:
        return [[] for _ in counts]
    if isinstance(images, list | tuple) and any(isinstance(row, list | tuple) for row in images):
        rows = image_rows(images)
        if len(rows) != len(counts):
            raise InputError(f"{len(counts)} text(s) but {len(rows)} rows of images; give one row of images per text")
        return rows
    flat = list(images) if isinstance(images, list | tuple) else [images]
    if len(counts) == 1:
        return [flat]
    if sum(counts) != len(flat):
        raise ImageCountError(placeholders=sum(counts), images=len(flat), where=f"the batch of {len(counts)} texts")
    rest = iter(flat)
    return [[next(rest) for _ in range(count)] for count in counts]


def image_rows(images: Any) -> list[list[Any]]:
    """Images as a list per row: of one image or a flat list one row, of a list of lists one row each.

    Raises:
        InputError: images and lists are mixed.
    """
    if not isinstance(images, list | tuple):
        return [[images]]
    if not any(isinstance(row, list | tuple) for row in images):
        return [list(images)]
    rows = []
    for i, row in enumerate(images):
        if row is not None and not isinstance(row, list | tuple):
            raise InputError(f"images[{i}] is {_kind(row)} among lists of images; give a list for every row")
        rows.append(list(row or ()))
    return rows


def _interleaved(rows: Sequence[Any], placeholder: str) -> tuple[list[str], list[list[Any]]]:
    texts, rows_of_images = [], []
    for i, row in enumerate(rows):
        pieces, images = [], []
        for j, element in enumerate(row if isinstance(row, list | tuple) else [row]):
            if is_image(element) or is_image_reference(element):
                pieces.append(placeholder)
                images.append(element)
            elif not isinstance(element, str):
                raise InputError(f"text[{i}][{j}] is {_kind(element)}; a text, a URL or an image is due")
            elif placeholder in element:
                raise InputError(f"text[{i}][{j}] holds {placeholder!r} although its row carries the images themselves")
            else:
                pieces.append(element)
        texts.append("".join(pieces))
        rows_of_images.append(images)
    return texts, rows_of_images


def _imagelike(value: Any) -> bool:
    return is_image(value) or is_image_reference(value)


def _textlike(value: Any) -> bool:
    return isinstance(value, str) and not is_image_reference(value)


def _all(value: Any, test: Callable[[Any], bool]) -> bool:
    """Whether every leaf passes, and there is one."""
    leaves = list(_leaves(value))
    return bool(leaves) and all(map(test, leaves))


def _any(value: Any, test: Callable[[Any], bool]) -> bool:
    return any(map(test, _leaves(value)))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _kind(value: Any) -> str:
    return "an empty list" if value in ([], ()) else f"a value of type {type(value).__name__}"
