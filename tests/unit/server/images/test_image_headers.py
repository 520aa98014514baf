"""What an encoded image says of itself is bounded before anything is decoded, in every format that is read."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from idefics.errors import ImageError
from idefics.server.images.decoder import Decoder
from idefics.server.images.headers import check_header
from idefics.server.limits import ServerLimits


def saved(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    (image or Image.new("RGB", (16, 16), (9, 8, 7))).save(out, form, **options)
    return out.getvalue()


def directory(*tags: tuple[int, int, int, int], big: bool = False, order: str = "<", at: int | None = None) -> bytes:
    """A TIFF's header, and a directory of (tag, type, count, value)."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(order + "HHHQ", 43, 8, 0, 16) + struct.pack(order + "Q", len(tags))
        packed = (struct.pack(order + "HHQI4x", *tag) for tag in sorted(tags))
        return head + b"".join(packed) + bytes(8)
    body = b""
    for tag, kind, count, value in sorted(tags):
        packed = struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value)
        body += struct.pack(order + "HHI", tag, kind, count) + packed
    return mark + struct.pack(order + "HI", 42, at or 8) + struct.pack(order + "H", len(tags)) + body + bytes(4)


def tiles(width: int, height: int, side: int, **options: Any) -> bytes:
    return directory((256, 4, 1, width), (257, 4, 1, height), (322, 4, 1, side), (323, 4, 1, side), **options)


def jpeg_of(segment: bytes, times: int) -> bytes:
    plain = saved("JPEG")
    return plain[:2] + segment * times + plain[2:]


def segment(kind: int, content: bytes) -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(chunks: bytes) -> bytes:
    plain = saved("PNG")
    return plain[:33] + chunks + plain[33:]


def webp_of(chunks: bytes) -> bytes:
    plain = saved("WEBP")
    return plain[:4] + struct.pack("<I", len(plain) - 8 + len(chunks)) + plain[8:] + chunks


def gif_of(blocks: bytes) -> bytes:
    plain = saved("GIF", Image.new("P", (16, 16)))
    at = plain.index(b",", 13)
    return plain[:at] + blocks + plain[at:]


def bmp(width: int, height: int, header: int = 40, runs: bytes = b"") -> bytes:
    return b"BM" + bytes(12) + struct.pack("<IiiHHI", header, width, height, 1, 8, 1) + bytes(20 + 1024) + runs


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def avif_of(content: bytes) -> bytes:
    return box(b"ftyp", b"avifavif") + box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", content)))


# 400 tags that all hold the same 100 kB; 100,000 fractions; 300,000 offsets.
SHARED = directory(*((40_000 + number, 7, 100_000, 8) for number in range(400))) + bytes(100_000)
FRACTIONS = directory((282, 5, 100_000, 30)) + b"\1\0\0\0\2\0\0\0" * 100_000
OFFSETS = directory((256, 4, 1, 1), (257, 4, 1, 300_000), (273, 4, 300_000, 50)) + bytes(1_200_000)
SEVERAL = directory(*((number, 5, 7_000, 40) for number in range(9))) + bytes(60_000)
EXIF = b"Exif\0\0"
PROFILE = b"Raw profile type exif\0"
MANY = directory(*((40_000 + number, 3, 1, 0) for number in range(12_000)), order=">")
REFUSED: dict[str, tuple[bytes, str]] = {
    "tiff: a tile of 900 megapixels": (tiles(1, 1, 30_000), "1x1 pixels in tiles of 30000x30000"),
    "tiff: such a tile in other words": (tiles(1, 1, 30_000, order=">"), "in tiles of 30000x30000"),
    "tiff: such a tile in long words": (tiles(1, 1, 30_000, big=True), "in tiles of 30000x30000"),
    "tiff: such a tile in long words, in the other order": (tiles(1, 1, 30_000, big=True, order=">"), "tiles of 30000x30000"),
    "tiff: deep tiles": (directory((256, 3, 1, 9), (257, 3, 1, 9), (322, 3, 1, 4_000), (323, 3, 1, 4_000), (258, 3, 4, 8),
                                   (277, 3, 1, 60)), "in tiles of 4000x4000"),
    "tiff: tags that share their bytes": (SHARED, "more tags, or larger ones"),
    "tiff: fractions": (FRACTIONS, "more tags, or larger ones"),
    "tiff: offsets": (OFFSETS, "more tags, or larger ones"),
    "tiff: tags": (directory(*((40_000 + number, 3, 1, 0) for number in range(12_000))), "more tags, or larger ones"),
    "tiff: a directory that leads to itself": (directory((0x8769, 4, 1, 8), (282, 5, 20_000, 30)) + bytes(160_000), "tags"),
    "jpeg: exif": (jpeg_of(segment(0xE1, EXIF + b"A"), 286_000), "more segments than the limit of 1000, 4 of them Exif"),
    "jpeg: comments": (jpeg_of(segment(0xFE, b""), 2_000), "more segments than the limit of 1000"),
    "jpeg: profiles": (jpeg_of(segment(0xE2, b"ICC_PROFILE\0\1\1"), 2_000), "more segments than the limit of 1000"),
    "jpeg: quantisation tables": (jpeg_of(segment(0xDB, bytes(65)), 2_000), "more segments than the limit of 1000"),
    "jpeg: fractions in exif": (jpeg_of(segment(0xE1, EXIF + SEVERAL), 1), "more tags, or larger ones"),
    "jpeg: exif twice named": (jpeg_of(segment(0xE1, EXIF + EXIF + SEVERAL), 1), "more tags, or larger ones"),
    "jpeg: exif after an end": (jpeg_of(b"\xff\xd9" + segment(0xE1, EXIF + b"A") * 9, 1), "4 of them Exif"),
    "jpeg: segments after an end": (jpeg_of(b"\xff\xd9" + segment(0xE2, b"") * 2_000, 1), "more segments than the limit"),
    "jpeg: segments behind a marker without one": (
        jpeg_of(b"\xff\xf0\xff\xff" + segment(0xE2, b"") * 2_000, 1), "more segments than the limit of 1000"),
    "jpeg: segments behind a reserved marker": (
        jpeg_of(b"\xff\xc8\xff\xff" + segment(0xE2, b"") * 2_000, 1), "more segments than the limit of 1000"),
    "jpeg: restarts": (jpeg_of(b"\xff\xd0", 2_000), "more segments than the limit of 1000"),
    "jpeg: beginnings": (jpeg_of(b"\xff\xd8", 9_000_000), "more segments than the limit of 1000"),
    "jpeg: ends": (jpeg_of(b"\xff\xd9", 2_000), "more segments than the limit of 1000"),
    "jpeg: padding": (jpeg_of(b"\xff", 6_000_000), "more bytes between its segments than the limit of 65536"),
    "jpeg: escapes": (jpeg_of(b"\xff\0", 6_000_000), "more bytes between its segments"),
    "jpeg: bytes of no meaning": (jpeg_of(b"\0", 6_000_000), "more bytes between its segments"),
    "jpeg: padding of every segment": (jpeg_of(b"\xff" * 200 + segment(0xE2, b""), 900), "more bytes between its segments"),
    "jpeg: one that reads like an avif": (
        saved("JPEG")[:2] + b"\xff\xe2ftyp" + bytes(0x6674 - 4) + saved("JPEG")[2:20] * 1_001, "more segments than the limit"),
    "png: exif in a text": (png_of(chunk(b"tEXt", PROFILE + b"\n\n\n" + SEVERAL.hex().encode())), "more tags, or larger ones"),
    "png: exif in a packed text": (
        png_of(chunk(b"zTXt", PROFILE + b"\0" + zlib.compress(b"\n\n\n" + SEVERAL.hex().encode()))), "more tags"),
    "png: exif in a text of a language": (
        png_of(chunk(b"iTXt", PROFILE + b"\0\0\0\0\n\n\n" + SEVERAL.hex().encode())), "more tags, or larger ones"),
    "png: texts of exif": (png_of(chunk(b"tEXt", PROFILE) * 9), "more texts with Exif than the limit of 4"),
    "png: texts after an end": (
        png_of(b"").replace(b"IHDR", b"IEND", 1) + chunk(b"tEXt", b"a\0b") * 12_000, "a PNG of more chunks"),
    "gif: behind an empty block": (gif_of(b"!\1\0," + bytes(44) + b"\1A" * 12_000 + b"\0"), "a GIF of more blocks"),
    "gif: behind an empty loop": (
        gif_of(b"!\xff\x0bNETSCAPE2.0\0," + bytes(44) + b"\1A" * 12_000 + b"\0"), "a GIF of more blocks"),
    "gif: empty comments": (gif_of(b"!\xfe\0" * 12_000), "a GIF of more blocks"),
    "tiff: two readings": (b"MM\0+" + MANY[4:], "more tags, or larger ones"),
    "bmp: one that reads like an avif": (
        b"BMxxftyp" + bmp(9, 9, header=2**31)[8:], "a header of 2147483648 bytes"),
    "png: texts": (png_of(chunk(b"tEXt", b"a\0b") * 12_000), "a PNG of more chunks than the limit of 10000"),
    "png: private chunks": (png_of(chunk(b"prVt") * 12_000), "a PNG of more chunks"),
    "png: empty pieces of the picture": (png_of(chunk(b"IDAT") * 12_000), "a PNG of more chunks"),
    "png: exif": (png_of(chunk(b"eXIf", FRACTIONS)), "more tags, or larger ones"),
    "webp: chunks": (webp_of(b"abcd\0\0\0\0" * 12_000), "a WebP of more chunks"),
    "webp: exif": (webp_of(b"EXIF" + struct.pack("<I", len(FRACTIONS)) + FRACTIONS), "more tags, or larger ones"),
    "gif: comments": (gif_of(b"!\xfe\1A\0" * 12_000), "a GIF of more blocks than the limit of 10000"),
    "gif: one long comment": (gif_of(b"!\xfe" + b"\1A" * 12_000 + b"\0"), "a GIF of more blocks"),
    "gif: bytes of no meaning": (gif_of(b"x" * 12_000), "a GIF of more blocks"),
    "bmp: a header of no kind": (bmp(9, 9, header=2**31), "a header of 2147483648 bytes"),
    "bmp: pixels in runs": (bmp(49_000_000, 1, runs=b"\1\1\0\0"), "49000000x1 pixels in runs"),
    "bmp: upside down": (bmp(7_000, -7_000, runs=b"\0\0"), "7000x7000 pixels in runs"),
    "bmp: runs of nothing": (bmp(100, 100, runs=b"\xff\1" * 4_500_000), "9001078 bytes, over the limits of 4000000 pixels"),
    "avif: boxes": (avif_of(box(b"free", b"") * 12_000), "an AVIF of more boxes"),
    "avif: a tile of 900 megapixels": (avif_of(box(b"ispe", struct.pack(">III", 0, 30_000, 30_000))), "parts of 30000x30000"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_promises_too_much_is_refused_at_once(data: bytes, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it is opened"))
    began = time.thread_time()
    with pytest.raises(ImageError, match=rf"^image 1 of 1 .*{told}"):
        Decoder(ServerLimits()).image(data, "image 1 of 1")
    assert time.thread_time() - began < 1


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x0112], made[0x010F] = 6, "a camera"
    made.get_ifd(0x8769)[0x829A] = (1, 60)
    made.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    return made


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), (number, 0, 0)) for number in range(count)]


HONEST: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG", exif=exif(), comment=b"a", icc_profile=bytes(200_000), progressive=True),
    "png": lambda: saved("PNG", exif=exif()),
    "png of frames": lambda: saved("PNG", save_all=True, append_images=frames(60)),
    "webp": lambda: saved("WEBP", exif=exif().tobytes()),
    "webp of frames": lambda: saved("WEBP", save_all=True, append_images=frames(60)),
    "gif": lambda: saved("GIF", save_all=True, append_images=frames(60), comment=b"a" * 2_000),
    "bmp": lambda: saved("BMP"),
    "bmp of one byte": lambda: saved("BMP", Image.new("P", (30, 20))),
    "tiff": lambda: saved("TIFF", Image.new("RGB", (300, 200)), exif=exif(), compression="tiff_lzw"),
    "tiff of strips": lambda: saved("TIFF", Image.new("L", (10, 9_000)), tiffinfo={278: 1}),
    "tiff of frames": lambda: saved("TIFF", save_all=True, append_images=frames(60)),
    "big tiff": lambda: saved("TIFF", big_tiff=True),
    "avif": lambda: saved("AVIF", exif=exif().tobytes()),
    "jpeg with padding": lambda: jpeg_of(b"\xff" * 9_000 + segment(0xE2, b"a"), 5),
    "png with exif in a text": lambda: png_of(
        chunk(b"zTXt", PROFILE + b"\0" + zlib.compress(b"\nexif\n" + exif().tobytes().hex().encode()))
    ),
    "gif of a loop": lambda: gif_of(b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"),
    "nothing": lambda: b"",
    "the beginning of a tiff": lambda: b"II*\0\xff\xff\xff\xff",
    "a tiff that leads out of itself": lambda: directory((282, 5, 9, 10**9), at=10**6),
    "exif that is none": lambda: jpeg_of(segment(0xE1, EXIF + b"MM\0*\xff"), 1),
}


@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST.keys())
def test_what_is_honest_or_merely_broken_passes(make: Callable[[], bytes]) -> None:
    data = make()
    check_header(data, ServerLimits(), "image 1 of 1")
    for cut in range(0, min(len(data), 400), 7):
        check_header(data[:cut], ServerLimits(), "image 1 of 1")


def test_tiles_of_a_usual_size_are_read() -> None:
    check_header(tiles(300, 200, 2_048), ServerLimits(), "image 1 of 1")
    check_header(tiles(20_000, 2_000, 4_096), ServerLimits(), "image 1 of 1")
