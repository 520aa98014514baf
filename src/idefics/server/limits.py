"""What one request may ask for, and how many requests at once.

Everything that a stranger can make large is bounded: here, or, where no honest request comes near the bound and no server needs
another one, beside the code that it is of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from idefics.errors import OptionError

__all__ = ["ServerLimits"]


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Bounds of a server.

    Attributes:
        requests: being prepared, waiting or answered together; more are told to come back (429).
        body_bytes: of a request.
        held_bytes: of all requests' bodies together.
        body_seconds: that a request may take to arrive.
        images: in one request.
        image_bytes: of one encoded image.
        request_image_bytes: of all images together that are fetched for a request.
        held_image_bytes: of all requests' fetched images together; more are told to come back (429).
        image_pixels: of one image.
        request_pixels: of all images of a request together.
        jpeg_scans: of one JPEG. Encoders write 1, or 6 to 18 that refine each other (progressive).
        jpeg_segments: before a JPEG's first scan. An image of 20 MB has room for 320 that are full.
        jpeg_stray_bytes: that stand there between segments. Padding of honest files takes hundreds.
        image_parts: chunks of a PNG or WebP, blocks of a GIF before its first frame, boxes of an AVIF, tags of a TIFF or of
            Exif. A PNG of 20 MB in the pieces that libpng writes has 2,560.
        rle_pixels: of a BMP in runs, which are decoded in Python.
        scan_pixels: pixels times scans of all JPEGs of a request together.
        decode_seconds: that decoding and resizing one image may take, after which its process is killed. The slowest honest
            image, a progressive JPEG of 50 megapixels, takes 4.
        request_decode_seconds: that the images of a request may take so together.
        decode_memory: bytes that it may take, on top of an idle process. 50 megapixels with alpha, turned upright, take 0.6 GB.
        held_pixel_bytes: of all requests' prepared images together, up to the end of their answers; more come back (429). An
            engine in a process of its own holds them once more.
        image_seconds: in which an image must have been fetched, redirects included.
        redirects: that are followed for one image.
        prompts: texts in one request of `/v1/completions`.
        answers: to one prompt (`n`, `best_of`).
        stops: stop strings of one request.
        stop_characters: of one stop string.
        top_tokens: alternatives reported with each token.
        grammar_characters: of a JSON schema or regular expression.
        grammar_seconds: of processor time that compiling one may take, after which its process is killed. Honest ones take
            milliseconds. On a busy machine four times as many may go by.
        grammar_memory: bytes that it may take, on top of an idle process.
        grammar_held: bytes that a compiled one may have, which its answers hold, and the engine for a while after. Honest
            ones have thousands. (Measured where the C library tells, which glibc does.)
        deadline: seconds from a request's arrival to its end.
        send_seconds: that a client may leave a piece of its answer unread.
        workers: threads that prepare prompts, and as many processes that decode images.
        compilers: processes that compile grammars.
        stuck_after: seconds of one step, or without a word though there is work, after which the engine counts as stuck.
        drain: seconds that running requests get when the server stops.
    """

    requests: int = 128
    body_bytes: int = 32 * 2**20
    held_bytes: int = 2**29
    body_seconds: float = 60.0
    images: int = 64
    image_bytes: int = 20 * 2**20
    request_image_bytes: int = 64 * 2**20
    held_image_bytes: int = 2**29
    image_pixels: int = 50_000_000
    request_pixels: int = 200_000_000
    jpeg_scans: int = 32
    jpeg_segments: int = 1_000
    jpeg_stray_bytes: int = 2**16
    image_parts: int = 10_000
    rle_pixels: int = 4_000_000
    scan_pixels: int = 2_000_000_000
    decode_seconds: float = 10.0
    request_decode_seconds: float = 30.0
    decode_memory: int = 2**30
    held_pixel_bytes: int = 2**32
    image_seconds: float = 20.0
    redirects: int = 3
    prompts: int = 16
    answers: int = 8
    stops: int = 16
    stop_characters: int = 1_000
    top_tokens: int = 20
    grammar_characters: int = 2**16
    grammar_seconds: float = 3.0
    grammar_memory: int = 2**29
    grammar_held: int = 2**24
    deadline: float = 600.0
    send_seconds: float = 60.0
    workers: int = 2
    compilers: int = 2
    stuck_after: float = 120.0
    drain: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value):
                raise OptionError(f"{field.name} = {value} must be a finite number")
            if not value > 0 and field.name not in ("redirects", "images", "drain"):
                raise OptionError(f"{field.name} = {value} must be above 0")
            if value < 0:
                raise OptionError(f"{field.name} = {value} must not be negative")
