"""In-context examples: how base models are used, and a help to the others.

from idefics import fewshot
shots = fewshot.read_shots("shots.jsonl")                  # {"image": "a.png", "question": "...", "answer": "..."}
near = fewshot.nearest(model, shots, ["photo.png"], k=4)   # or shots[:4], or fewshot.at_random(shots, k=4, seed=0)
prompt, images = fewshot.build(model, near, "What is this?", ["photo.png"])
model.generate(prompt, images=images, raw=True, stop=["\\n"])
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idefics.api import Idefics
from idefics.asking.question import turn
from idefics.config.json_files import parse_json
from idefics.config.whole_files import expanded, read_whole
from idefics.errors import InputError, OptionError
from idefics.parallel.launch import agreed_seed

__all__ = ["FORM", "ORDERS", "Shot", "at_random", "build", "check_choice", "choose", "nearest", "read_shots"]

ORDERS = ("order", "random", "nearest")
_FIELD = re.compile(r"\{(images|question|answer)\}")

FORM = "{images}Question: {question} Answer: {answer}"
"""One example for a model without chats; examples stand a line apart, and the last ends where the answer begins."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """An example.

    Attributes:
        question: as it will be put to the model.
        answer: what the model should have said.
        images: paths, URLs, PIL images; any number. One alone may be given as it is.
    """

    question: str
    answer: str
    images: Sequence[Any] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", _several(self.images))


def read_shots(path: str | Path) -> list[Shot]:
    """Examples from a file: a JSON list, or one JSON object per line.

    Each has `question`, `answer`, and `image` or `images`; paths are relative to the file's folder.

    Raises:
        InputError: the file or an example cannot be used; the example is named.
    """
    path = expanded(path)
    try:
        text = read_whole(path).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    try:
        # Not splitlines(), which also cuts at marks that JSON allows within a text, such as U+2028.
        lines = [line for line in text.split("\n") if line.strip()]
        rows = parse_json(text) if text.lstrip().startswith("[") else [parse_json(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is neither a JSON list nor one JSON object per line: {error}") from None
    if not rows:
        raise InputError(f"{path} holds no examples")
    return [_shot(row, path, number) for number, row in enumerate(rows, 1)]


def check_choice(shots: Sequence[Shot], images: Any, *, by: str, k: int | None = None) -> None:
    """Refuses what `choose` would refuse; needs no model.

    Raises:
        OptionError: no such order, or `k` is not a number from 1.
        InputError: as `nearest`.
    """
    if by not in ORDERS:
        raise OptionError(f"examples can be chosen by {', '.join(ORDERS)}, not {by!r}")
    if k is not None:
        _check_number(k)
    if by == "nearest":
        _check_images(shots, images)


def choose(
    loaded: Idefics, shots: Sequence[Shot], images: Any, *, by: str, k: int | None = None, seed: int | None = None
) -> list[Shot]:
    """Examples in order, at random, or nearest.

    Args:
        loaded: the model.
        shots: to choose from.
        images: of the question; one or a list.
        by: one of `ORDERS`.
        k: how many; None takes all.
        seed: of a random choice; None differs every time, but not between processes that compute one model.

    Raises:
        OptionError: no such order, or `k` is not a number from 1.
        InputError: as `nearest`.
    """
    check_choice(shots, images, by=by, k=k)
    k = len(shots) if k is None else k
    if by == "nearest":
        return nearest(loaded, shots, images, k=k) if shots else []
    if by == "random":
        return at_random(shots, k=k, seed=agreed_seed(loaded.model) if seed is None else seed) if shots else []
    return list(shots[:k])


def at_random(shots: Sequence[Shot], *, k: int, seed: int | None = None) -> list[Shot]:
    """`k` of the examples, or all where there are fewer, in random order.

    Args:
        shots: to choose from.
        k: how many.
        seed: the same seed chooses the same; None differs every time.

    Raises:
        OptionError: `k` is not a number from 1.
    """
    _check_number(k)
    return random.Random(seed).sample(list(shots), min(k, len(shots)))


def nearest(loaded: Idefics, shots: Sequence[Shot], images: Any, *, k: int) -> list[Shot]:
    """The `k` examples whose images are most like the given ones, the likest last (RICES, arXiv 2109.05014).

    Images are compared by the model's own vision tower: the cosine between their vectors, means where there are several.

    Args:
        loaded: the model.
        shots: to choose from; each needs an image.
        images: of the question; one or a list.
        k: how many.

    Raises:
        InputError: there is no image to compare.
        OptionError: `k` is not a number from 1.
    """
    _check_number(k)
    _check_images(shots, images)
    due = _vector(loaded, _several(images))
    likeness = torch.stack([_vector(loaded, shot.images) for shot in shots]) @ due
    order = likeness.argsort(descending=True, stable=True)[:k].tolist()
    return [shots[index] for index in reversed(order)]


def build(
    loaded: Idefics,
    shots: Sequence[Shot],
    question: str,
    images: Any = (),
    *,
    form: str = FORM,
    chat: bool | None = None,
) -> tuple[str, list[Any]]:
    """A prompt of examples and a question, and all its images in order; generate from it with `raw=True`.

    Args:
        loaded: the model; of either family.
        shots: in the order in which they shall stand.
        question: to be answered.
        images: of the question, one or a list; they come before it.
        form: of an example where there are no chats, with `{images}`, `{question}` and, after both, `{answer}`.
        chat: examples as earlier turns of a chat; None where the model has chats.

    Raises:
        InputError: a text holds a place for an image, or the form lacks a field or answers before it asks.
        TemplateError: a chat was asked of a model without.
    """
    processor = loaded.processor
    place = processor.image_token
    for text in (question, *(part for shot in shots for part in (shot.question, shot.answer))):
        if place in text:
            raise InputError(f"{text!r} holds {place}, which stands for an image; images come before their question")
    own = _several(images)
    every = [*(image for shot in shots for image in shot.images), *own]
    asked = [(shot.question, shot.answer, len(shot.images)) for shot in shots]
    if chat if chat is not None else processor.chat_template is not None:
        messages: list[dict[str, Any]] = []
        for text, answer, count in asked:
            messages += [turn("user", text, count), turn("assistant", answer)]
        messages.append(turn("user", question, len(own)))
        return processor.chat_prompt(messages), every
    for field in ("{images}", "{question}", "{answer}"):
        if form.count(field) != 1:
            raise InputError(f"the form {form!r} must hold {field} once")
    before, _, after = form.partition("{answer}")
    if _FIELD.search(after):
        raise InputError(f"the form {form!r} must hold {{answer}} last: the prompt ends where the model's answer begins")
    done = [_filled(form, images=place * count, question=text, answer=answer) for text, answer, count in asked]
    last = _filled(before, images=place * len(own), question=question).rstrip()
    return "\n".join([*done, last]), every


def _filled(form: str, **values: str) -> str:
    """All fields in one pass: what a value holds is no field."""
    return _FIELD.sub(lambda field: values[field[1]], form)


def _several(images: Any) -> tuple[Any, ...]:
    """One image or a list of them: a path is an image, not its letters."""
    return () if images is None else tuple(images) if isinstance(images, list | tuple) else (images,)


def _check_number(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise OptionError(f"at least 1 example, not {k!r}")


def _check_images(shots: Sequence[Shot], images: Any) -> None:
    if not _several(images):
        raise InputError("nearest compares images, and the question has none")
    for number, shot in enumerate(shots, 1):
        if not shot.images:
            raise InputError(f"nearest compares images, and example {number} has none")


@torch.inference_mode()
def _vector(loaded: Idefics, images: Sequence[Any]) -> Tensor:
    """Unit vector (F) of an example's images."""
    processor = loaded.processor
    inputs = processor.inputs([processor.image_token * len(images)], [list(images)])
    vectors_NF = torch.nn.functional.normalize(loaded.model.image_vectors(inputs.images_CHW).float().cpu(), dim=-1)
    return torch.nn.functional.normalize(vectors_NF.mean(0), dim=-1)


def _shot(row: Any, path: Path, number: int) -> Shot:
    where = f"example {number} of {path}"
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is a {type(row).__name__}, not an object with question and answer")
    unknown = sorted(set(row) - {"question", "answer", "image", "images"})
    if unknown:
        raise InputError(f"{where} has unknown key(s) {', '.join(unknown)}; there are question, answer, image and images")
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str):
            raise InputError(f"{where}: {key} must be a text, not {row.get(key)!r}")
    if "image" in row and "images" in row:
        raise InputError(f"{where} has image and images; give one of them")
    images = row.get("images", [row["image"]] if "image" in row else [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise InputError(f"{where}: images must be paths or URLs, not {images!r}")
    return Shot(question=row["question"], answer=row["answer"], images=tuple(_located(image, path.parent) for image in images))


def _located(image: str, folder: Path) -> str:
    """A path relative to the file as one that can be opened from anywhere; anything else as it is."""
    relative = folder / image
    try:
        there = relative.exists()
    except (OSError, ValueError):  # no name that a file can have: base64
        there = False
    return str(relative) if there and "://" not in image and not image.startswith("data:") else image
