"""Data URLs to bytes."""

from __future__ import annotations

import binascii

from idefics.errors import ImageError
from idefics.server.images.references import shortened

__all__ = ["data_bytes"]

# Decoded in one go. The interpreter's lock is held meanwhile, so much more would hold up the event loop and the engine.
_PIECE = 2**18
_SPACES = b" \t\n\r\v\f"
# What base64 and line ends become in URLs; nothing else that is escaped is base64.
_ESCAPED = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b"", b"%20": b""}


def data_bytes(reference: str, limit: int) -> bytes:
    """What a base64 data URL holds. Takes a while for large ones: not for the event loop.

    Raises:
        ImageError: it is not base64, or holds more than `limit` bytes.

    >>> data_bytes("data:image/png;base64,aGk%3D", 100)
    b'hi'
    """
    comma = reference.find(",", 0, 1_000)
    if comma < 0 or not reference[:comma].lower().endswith(";base64"):
        raise ImageError(f"{shortened(reference)} is not a base64 data URL (data:image/png;base64,...)")
    if len(reference) - comma - 1 > limit * 4 // 3 + 4:
        raise ImageError(f"{shortened(reference)} is over the limit of {limit} bytes for an image")
    found, escaped, plain, ended = bytearray(), b"", b"", False
    try:
        for at in range(comma + 1, len(reference), _PIECE):
            escaped += reference[at : at + _PIECE].encode("ascii")
            cut = escaped.find(b"%", -2) if at + _PIECE < len(reference) else -1  # an escape may go on in the next piece
            whole, escaped = (escaped, b"") if cut < 0 else (escaped[:cut], escaped[cut:])
            plain += _unescaped(whole).translate(None, _SPACES)
            blocks = len(plain) - len(plain) % 4
            if ended and blocks:
                raise binascii.Error("data after the padding")
            ended = plain[:blocks].endswith(b"=")
            found += binascii.a2b_base64(plain[:blocks], strict_mode=True)
            plain = plain[blocks:]
        if plain:
            binascii.a2b_base64(plain, strict_mode=True)  # says what is wrong with it
    except ValueError as error:
        raise ImageError(f"{shortened(reference)} is not valid base64: {error}") from None
    return bytes(found)


def _unescaped(piece: bytes) -> bytes:
    if b"%" in piece:
        for escape, meant in _ESCAPED.items():
            piece = piece.replace(escape, meant).replace(escape.lower(), meant)
    return piece
