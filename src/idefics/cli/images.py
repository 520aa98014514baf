"""Images named on a command line, and found in a line that somebody typed or dropped files into."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from idefics.config.whole_files import expanded
from idefics.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Attachment", "attach", "parts_of_line", "reference"]

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

_URL = re.compile(r"https?://|data:image/|file://", re.IGNORECASE)
# A word in quotes, or a run without spaces in which a backslash makes a space part of it. What follows a closing quote
# must end the word, so that the apostrophe of "what's" never opens one and that of "dog's" never closes one.
_WORD = re.compile(r"""(?P<quote>["'])(?P<quoted>.+?)(?P=quote)(?=[\s?!.,;:)]|$)|(?:\\.|[^\s\\]|\\(?=\s*$))+""")
_CLOSING = "?!.,;:)\"'"
_LONGEST_NAME = 16  # words of a path with bare spaces


@dataclass(frozen=True)
class Attachment:
    """An image and where it came from.

    Attributes:
        source: a URL or an absolute path.
        image: in its own mode and orientation, as the file has it: what of that a model sees is its processor's to say.
    """

    source: str
    image: Image.Image


def attach(source: str) -> Attachment:
    """Opens an image; a path, an http(s), data or `file://` URL.

    Raises:
        ImageError: it cannot be found, fetched or read.
    """
    from idefics.processor.fetch import open_image

    found = reference(source)
    image = open_image(found)
    is_url = _URL.match(found) is not None
    return Attachment(found if is_url else str(Path(found).absolute()), image)


def reference(source: str) -> str:
    """What `open_image` takes, for what a shell or a terminal hands over.

    Raises:
        ImageError: a `file://` URL of another machine.

    >>> reference("file:///tmp/my%20photo.png")
    '/tmp/my photo.png'
    """
    if source.lower().startswith("file://"):
        parts = urlsplit(source)
        # The name of a machine is this one's: terminals write file://hostname/path.
        path = unquote(parts.path)
        if not path or path == "/":
            raise ImageError(f"{source} names no file")
        return path[1:] if sys.platform == "win32" else path
    if _URL.match(source):
        return source
    return str(expanded(source)) if source.startswith("~") else source


def parts_of_line(line: str) -> tuple[str, list[str]]:
    """The text of a line without its images, and the images' references in order.

    Taken as an image: an http(s), data or file URL; a file that exists and looks like an image or is written as a path
    (with a slash, in quotes, or dropped by a terminal); and a name with an image's suffix even if there is no such
    file, so that a typing error is told instead of being asked to the model. Spaces in names may be quoted or escaped;
    in absolute names of files that exist they may be bare.

    >>> parts_of_line("what is on https://example.com/cat.jpg ?")
    ('what is on ?', ['https://example.com/cat.jpg'])
    """
    found: list[str] = []
    rest: list[str] = []
    at = 0
    for start, end, name in _references(line):
        found.append(name)
        rest.append(line[at:start])
        at = end
    if not found:
        return line.strip(), []
    rest.append(line[at:])
    return " ".join(" ".join(rest).split()), found


def _references(line: str) -> Iterator[tuple[int, int, str]]:
    words = list(_WORD.finditer(line))
    past = 0
    for index, word in enumerate(words):
        if word.start() < past:
            continue
        if word["quoted"] is not None:
            name = _quoted(word["quoted"])
            if name is not None:
                past = word.end()
                yield word.start(), word.end(), name
            continue
        spaced = _with_bare_spaces(line, words[index : index + _LONGEST_NAME])
        if spaced is not None:
            past = spaced
            yield word.start(), spaced, str(expanded(line[word.start() : spaced]))
            continue
        bare = _bare(word[0])
        if bare is not None:
            text, name = bare
            past = word.start() + len(text)
            yield word.start(), past, name


def _quoted(text: str) -> str | None:
    if _URL.match(text):
        return text
    return text if _is_file(text) or (Path(text).suffix.lower() in SUFFIXES and text[:1] != ".") else None


def _bare(word: str) -> tuple[str, str] | None:
    """What of a word is a reference (closing punctuation is not), and the reference."""
    for text in dict.fromkeys((word, word.rstrip(_CLOSING))):
        for name in dict.fromkeys((text, re.sub(r"\\(.)", r"\1", text))):
            written_as_path = "/" in text or "\\" in text
            if _is_file(name) and (written_as_path or Path(name).suffix.lower() in SUFFIXES):
                return text, name
    text = word.rstrip(_CLOSING)
    if _URL.match(text):
        return text, text
    name = re.sub(r"\\(.)", r"\1", text)
    return (text, name) if Path(name).suffix.lower() in SUFFIXES else None


def _with_bare_spaces(line: str, words: list[re.Match[str]]) -> int | None:
    """Where the longest existing file's name ends that begins an absolute path here and holds spaces."""
    if not re.match(r"[/~]|\.\.?/|[A-Za-z]:[/\\]", words[0][0]):
        return None
    for word in reversed(words[1:]):
        if _is_file(line[words[0].start() : word.end()]):
            return word.end()
    return None


def _is_file(name: str) -> bool:
    try:
        return expanded(name).is_file()
    except (OSError, ValueError):  # too long, a null byte
        return False
