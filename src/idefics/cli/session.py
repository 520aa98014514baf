"""A conversation as `idefics chat` keeps it: no terminal in here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from idefics.cli.images import Attachment, attach
from idefics.config.json_files import parse_json
from idefics.config.whole_files import expanded, read_whole
from idefics.errors import ImageError, InputError

__all__ = ["Reply", "Session"]


class Chatter(Protocol):
    """What a session needs of a model."""

    name: str

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[str]:
        """Pieces of the assistant's next turn."""


@dataclass(frozen=True)
class Turn:
    """What one side said.

    Attributes:
        role: `"user"` or `"assistant"`.
        text: without its images.
        images: that come before the text.
    """

    role: str
    text: str
    images: tuple[Attachment, ...] = ()

    def message(self) -> dict[str, Any]:
        """As the chat template takes it."""
        pictures = [{"type": "image", "image": attachment.image} for attachment in self.images]
        return {"role": self.role, "content": [*pictures, {"type": "text", "text": self.text}]}

    def record(self) -> dict[str, Any]:
        """As a transcript keeps it: images by name."""
        pictures = [{"type": "image", "image": attachment.source} for attachment in self.images]
        return {"role": self.role, "content": [*pictures, {"type": "text", "text": self.text}]}


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: said, in full or up to where it was stopped.
        interrupted: stopped by Ctrl-C.
    """

    text: str
    interrupted: bool


class Session:
    """Turns said so far, and images waiting for the next question.

    Args:
        model: answers.
        options: of every answer.
    """

    def __init__(self, model: Chatter, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = dict(options)
        self._written: set[Path] = set()
        self.turns: list[Turn] = []
        self.waiting: list[Attachment] = []

    @property
    def images(self) -> list[Attachment]:
        """All images of the conversation, those that wait included."""
        return [attachment for turn in self.turns for attachment in turn.images] + self.waiting

    def attach(self, sources: Sequence[str]) -> None:
        """Opens images for the next question: all of them, or, if one fails, none.

        Raises:
            ImageError: one cannot be used.
        """
        self.waiting += [attach(source) for source in sources]

    def ask(self, text: str, write: Callable[[str], None]) -> Reply:
        """Puts a question with the images that wait, and tells the answer piece by piece.

        Ctrl-C ends the answer: what was said counts as the answer; if nothing was, the question was not asked. An error
        leaves the conversation as it was before the question, its images waiting.

        Raises:
            IdeficsError: as the model's.
        """
        turn = Turn("user", text, tuple(self.waiting))
        said = ""
        interrupted = False
        try:
            for piece in self._model.stream_chat([t.message() for t in (*self.turns, turn)], **self._options):
                said += piece
                write(piece)
        except KeyboardInterrupt:
            interrupted = True
        if said or not interrupted:
            self.turns += [turn, Turn("assistant", said)]
            self.waiting = []
        return Reply(said, interrupted)

    def reset(self) -> None:
        """Forgets everything."""
        self.turns, self.waiting = [], []

    def save(self, path: Path) -> None:
        """Writes the conversation; `.json` to be loaded again, anything else as text to read.

        Raises:
            InputError: the file exists and this session did not write it, or it cannot be written.
        """
        path = expanded(path)
        if self._is_taken(path):
            raise InputError(f"{path} exists already; choose another name")
        if path.suffix.lower() == ".json":
            records = [turn.record() for turn in self.turns]
            content = json.dumps({"model": self._model.name, "messages": records}, indent=2, ensure_ascii=False)
        else:
            content = "\n\n".join(map(_readable, self.turns))
        try:
            # Names of images may hold what is no UTF-8; escaped so, JSON gives them back.
            path.write_text(content + "\n", encoding="utf-8", errors="backslashreplace")
        except (OSError, ValueError) as error:  # a null byte in a name is a ValueError
            raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
        self._written.add(path.resolve())

    def _is_taken(self, path: Path) -> bool:
        try:
            return path.exists() and path.resolve() not in self._written
        except OSError:
            return False  # too long a name, say: writing will tell

    def load(self, path: Path) -> None:
        """Goes on with a conversation that was saved as `.json`, in place of this one.

        Raises:
            InputError: no such file, or not such a file.
            ImageError: one of its images is gone.
        """
        path = expanded(path)
        try:
            records = parse_json(read_whole(path))["messages"]
            turns = [_turn(record) for record in records]
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        except ImageError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} is no conversation that /save wrote as .json") from None
        self.turns, self.waiting = turns, []


def _turn(record: Mapping[str, Any]) -> Turn:
    parts = record["content"]
    pictures = tuple(attach(part["image"]) for part in parts if part["type"] == "image")
    return Turn(str(record["role"]), "".join(part["text"] for part in parts if part["type"] == "text"), pictures)


def _readable(turn: Turn) -> str:
    pictures = "".join(f"[image: {attachment.source}] " for attachment in turn.images)
    return f"{turn.role.capitalize()}: {pictures}{turn.text}"
