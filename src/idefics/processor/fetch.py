"""Images from wherever the user has them: the only file of the package that touches the network for images.

Sources: a path, an http(s) URL, a data URL, a base64 string, encoded bytes, an open file, a Pillow image, an array, and a
row of `datasets`, `{"bytes": ..., "path": ...}`. `file:` URLs are refused: a server that passes on what its clients send
must never be talked into reading its own disk by a URL.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps

from idefics.config.whole_files import read_whole
from idefics.errors import ImageError
from idefics.processor.encoded import check_pixels, opened
from idefics.processor.modes import NAME, array_to_image, name_of, to_rgb
from idefics.processor.quiet import quiet

__all__ = ["MAX_BYTES", "MAX_PIXELS", "TIMEOUT", "is_image", "is_image_reference", "load_image", "open_image", "upright_image"]

MAX_PIXELS = 178_956_970
"""Largest width x height that is decoded: Pillow's own refusal of a decompression bomb (537 MB as RGB)."""
MAX_BYTES = 64 * 2**20
"""Largest download, data URL or base64 string, in bytes of the encoded image."""
MAX_FILE_BYTES = 2**30
"""Largest image file, in bytes: `MAX_PIXELS` of any mode, uncompressed."""
TIMEOUT = 20.0
"""Seconds that a download may take in all."""

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{16,}={0,2}\s*")
_REFERENCE = re.compile(r"https?://[^\s<>]+|data:image/[^\s<>]+", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


def load_image(source: Any, *, timeout: float | None = TIMEOUT) -> Image.Image:
    """An upright RGB image of its own, as the reference's `load_image` makes it.

    EXIF orientation is applied and alpha dropped; of an animation the first frame is taken. This is the route of the
    Idefics2 processor. `open_image` followed by `ImageProcessor` is the other one.

    Args:
        source: path, http(s) URL, data URL, base64 string, encoded bytes, file opened for reading bytes (read from its
            beginning), Pillow image, array or tensor, or a mapping with any of these as `bytes` or `path`.
        timeout: seconds that a download may take; None waits for ever.

    Raises:
        ImageError: the image cannot be found, fetched, decoded or used; one line that names it.
    """
    image = upright_image(source, timeout=timeout)
    return image.copy() if image is source else image


def upright_image(source: Any, *, timeout: float | None = TIMEOUT) -> Image.Image:
    """As `load_image`, but an image that is upright RGB already is returned itself: to be read, not to be drawn on."""
    image = open_image(source, timeout=timeout)
    try:
        with quiet():
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            upright = ImageOps.exif_transpose(image) if turned else image
    except MemoryError:
        raise
    except Exception:
        # An orientation that cannot be read is no orientation; the pixels are fine.
        upright = image
    try:
        rgb = to_rgb(upright, alpha="drop")
    except ImageError as error:
        raise ImageError(f"{_name(source)}: {error}") from None
    if rgb is not source:  # theirs stays as it is
        rgb.info[NAME] = name_of(image)
    return rgb


def open_image(source: Any, *, timeout: float | None = TIMEOUT) -> Image.Image:
    """The image fully decoded, in its own mode and orientation.

    Args:
        source: as for `load_image`.
        timeout: as for `load_image`.

    Raises:
        ImageError: as for `load_image`.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, _name(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), _name(source))
    if isinstance(source, str):
        return _open_string(source, timeout)
    if isinstance(source, os.PathLike):
        return _open_path(Path(os.fsdecode(source)))
    if _is_file(source):
        return _decode(_content(source), _name(source))
    if _is_row(source):
        found = source.get("path") if source.get("bytes") is None else source["bytes"]
        if found is None:
            raise ImageError(f"{_name(source)} has neither bytes nor a path: its image is missing")
        return open_image(found, timeout=timeout)
    if hasattr(source, "__array__"):
        if hasattr(source, "detach"):
            source = source.detach().cpu()
            source = source.double() if source.is_floating_point() else source  # numpy has no bfloat16
        return array_to_image(source)
    raise ImageError(
        f"{_name(source)} is not an image: give a path, an http(s) or data URL, a base64 string, bytes, an open file, "
        "a Pillow image or an array"
    )


def is_image(value: Any) -> bool:
    """Whether `value` can only be an image: pixels, encoded bytes, a file, a `Path` or a row of these, never a string."""
    return (
        isinstance(value, Image.Image | bytes | bytearray | memoryview | os.PathLike)
        or _is_file(value)
        or _is_row(value)
        or (hasattr(value, "__array__") and not isinstance(value, str))
    )


def is_image_reference(value: Any) -> bool:
    """Whether `value` is a string that names an image by itself: an http(s) or data URL and nothing else."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def _is_file(value: Any) -> bool:
    return hasattr(value, "read") and not isinstance(value, type)


def _is_row(value: Any) -> bool:
    """Whether it is an image as `datasets` hands it over undecoded."""
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"bytes", "path"}


def _content(file: Any) -> bytes:
    """What an open file holds, from its beginning; it can be read again."""
    name = _name(file)
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        data = file.read()
    except (OSError, ValueError) as error:  # it is closed, not for reading, or text
        raise ImageError(f"{name} cannot be read: {_one_line(error)}; open it for reading bytes (mode 'rb')") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(f"{name} gives {type(data).__name__}, not bytes; open it with mode 'rb'")
    return bytes(data)


def _open_string(source: str, timeout: float | None) -> Image.Image:
    start = source[:8].lower()
    if start.startswith(("http://", "https://")):
        return _decode(_download(source, timeout), source)
    if start.startswith("data:"):
        header, comma, payload = source.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ImageError(f"{_name(source)} is not a base64 data URL (data:image/png;base64,...)")
        return _decode(_base64(payload, source), _name(source))
    if _exists(source):
        return _open_path(Path(source))
    scheme = _SCHEME.match(source)
    if scheme and "://" in source:
        raise ImageError(f"{_name(source)}: {scheme[1]}: URLs are not read; give an http(s) URL or a path")
    if len(source) >= 64 and _BASE64.fullmatch(source):
        return _decode(_base64(source, source), _name(source))
    raise ImageError(f"{_name(source) or 'an empty name'} does not exist: no such image file")


def _exists(source: str) -> bool:
    try:
        return bool(source) and Path(source).exists()
    except (OSError, ValueError):  # too long or otherwise impossible as a path: it may be base64
        return False


def _open_path(path: Path) -> Image.Image:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image file")
        return _decode(read_whole(path, most=MAX_FILE_BYTES), str(path))
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist: no such image file") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from None


def _base64(payload: str, source: str) -> bytes:
    if len(payload) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"{_name(source)} is over the limit of {MAX_BYTES} bytes for an encoded image")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{_name(source)} is not valid base64: {error}") from None


def _decode(data: bytes, name: str) -> Image.Image:
    image = opened(data, name, pixels=MAX_PIXELS)
    _decoded(image, name)
    check_pixels(image, name, MAX_PIXELS)  # some formats hold an image of another, which may be larger than they say
    image.info[NAME] = name
    return image


def _decoded(image: Image.Image, name: str) -> Image.Image:
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{name} has no pixels ({image.width}x{image.height})")
    try:
        with quiet():
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may raise anything from a decoder
        raise ImageError(f"{name} is damaged or truncated: {_one_line(error)}") from None
    return image


def _download(url: str, timeout: float | None) -> bytes:
    import httpx

    deadline = None if timeout is None else time.monotonic() + timeout
    data = bytearray()
    try:
        with httpx.stream(
            "GET", url, timeout=timeout, follow_redirects=True, headers={"User-Agent": "idefics", "Accept": "image/*,*/*;q=0.5"}
        ) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ImageError(f"{url} is over the limit of {MAX_BYTES} bytes for a download")
                if deadline is not None and time.monotonic() > deadline:
                    raise httpx.ReadTimeout("too slow")
    except httpx.HTTPStatusError as error:
        status = error.response
        raise ImageError(f"{url} could not be fetched: HTTP {status.status_code} {status.reason_phrase}".rstrip()) from None
    except httpx.TimeoutException:
        raise ImageError(f"{url} could not be fetched within {timeout:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ImageError(f"{url} could not be fetched: {_one_line(error)}; is there a network?") from None
    return bytes(data)


def _name(source: Any) -> str:
    if isinstance(source, str):
        return source if len(source) <= 100 else f"{source[:60]}... ({len(source)} characters)"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the image of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return name_of(source) or f"the {source.mode} image"
    if isinstance(source, os.PathLike):
        return os.fsdecode(source)
    if _is_file(source):
        return str(getattr(source, "name", "") or f"the {type(source).__name__}")
    if _is_row(source) and source.get("path"):
        return _name(source["path"])
    return f"a value of type {type(source).__name__}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
