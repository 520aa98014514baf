"""Images from everywhere, and one clear line for every way in which that can fail."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from golden.make_processor_golden import picture
from idefics.errors import ImageError
from idefics.processor import fetch
from idefics.processor.fetch import is_image, is_image_reference, load_image, open_image
from idefics.processor.modes import name_of

URL = "https://example.org/photo.png"


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    return picture(21, 13)


@contextmanager
def answering(
    monkeypatch: pytest.MonkeyPatch, handler: Callable[[httpx.Request], httpx.Response]
) -> Iterator[list[httpx.Request]]:
    """Lets `httpx.stream` be answered by `handler`: no socket is opened."""
    seen: list[httpx.Request] = []

    def stream(method: str, url: str, *, timeout: float | None, follow_redirects: bool, headers: dict[str, str]) -> Any:
        def record(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return handler(request)

        client = httpx.Client(transport=httpx.MockTransport(record), timeout=timeout, follow_redirects=follow_redirects)
        return client.stream(method, url, headers=headers)

    monkeypatch.setattr(httpx, "stream", stream)
    yield seen


def test_every_source_gives_the_same_image(tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo)
    path = tmp_path / "a photo.png"
    path.write_bytes(data)
    code = base64.b64encode(data).decode()
    pixels = np.asarray(photo.convert("RGB"))
    wrapped = "\n".join(code[i : i + 76] for i in range(0, len(code), 76))
    arrays = [pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels.copy())]
    sources = [path, str(path), data, bytearray(data), photo, *arrays, f"data:image/png;base64,{code}", code, wrapped]
    for source in sources:
        image = load_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels), type(source)
    with answering(monkeypatch, lambda _: httpx.Response(200, content=data)) as seen:
        assert np.array_equal(np.asarray(load_image(URL)), pixels)
    assert len(seen) == 1
    assert seen[0].headers["user-agent"] == "idefics"


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP"):
        path = tmp_path / f"moving.{form.lower()}"
        frames[0].save(path, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {}))
        assert load_image(path).getpixel((3, 3)) == (255, 0, 0)


def test_exif_orientation_is_applied_and_a_broken_one_ignored(tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    photo.convert("RGB").save(path, exif=exif)
    assert load_image(path).size == (13, 21)
    assert open_image(path).size == (21, 13)
    data = path.read_bytes()
    for junk in (b"\xff\xff\xff\xff\xff\xff\xff\xff", b"II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08"):
        at = data.index(b"Exif\x00\x00") + 6
        path.write_bytes(data[:at] + junk + data[at + len(junk) :])
        assert load_image(path).size in ((13, 21), (21, 13))


def test_local_name_that_looks_like_base64(tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a" * 64
    Path(name).write_bytes(encoded(photo))
    assert load_image(name).size == photo.size


def error_of(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size and holds nothing."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")


def test_files_that_are_no_image(tmp_path: Path, photo: Image.Image) -> None:
    assert "missing.png does not exist" in error_of(tmp_path / "missing.png")
    assert "missing.png does not exist" in error_of(str(tmp_path / "missing.png"))
    assert "is a folder" in error_of(str(tmp_path))
    (tmp_path / "notes.txt").write_text("not an image at all")
    assert "notes.txt is not an image" in error_of(tmp_path / "notes.txt")
    (tmp_path / "empty.png").touch()
    assert "empty.png is empty" in error_of(tmp_path / "empty.png")
    jpeg = encoded(picture(200, 200).convert("RGB"), "JPEG")
    for name, data in (("cut.jpg", jpeg[: len(jpeg) // 2]), ("cut.png", encoded(photo)[:-60])):
        (tmp_path / name).write_bytes(data)
        assert f"{name} is damaged or truncated" in error_of(tmp_path / name)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(photo))
    assert "file: URLs are not read" in error_of(secret.as_uri())
    assert "ftp: URLs are not read" in error_of("ftp://example.org/a.png")


@pytest.mark.parametrize(
    "data",
    [b"GIF89a", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"RIFF\x10\x00\x00\x00WEBPVP8 ", b"BM" + bytes(60), b"II*\x00" + b"\xff" * 40],
)
def test_headers_without_a_body(data: bytes) -> None:
    error_of(data)


def test_random_damage_gives_an_image_or_an_image_error() -> None:
    random = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(picture(40, 30).convert("RGB"), form)
        for _ in range(25):
            data = bytearray(whole)
            for at in random.integers(0, len(data), 12):
                data[at] = int(random.integers(256))
            with contextlib.suppress(ImageError):
                assert load_image(bytes(data[: random.integers(1, len(data) + 1)])).mode == "RGB"


def test_decompression_bombs(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    assert "pixels" in error_of(png_header(100_000, 100_000))
    assert "limit of 178956970" in error_of(png_header(14_000, 14_000))
    # Between Pillow's warning and its refusal nothing is said and nothing refused: only the body is missing here.
    assert "damaged" in error_of(png_header(10_000, 10_000))
    monkeypatch.setattr(fetch, "MAX_PIXELS", 100)
    assert "21x13 pixels, over the limit of 100" in error_of(encoded(photo))


def test_tensors_of_every_float() -> None:
    levels = torch.tensor([0.0, 1.0]).repeat(3, 4, 2)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert load_image(levels.to(dtype)).tobytes() == load_image(levels).tobytes()


def test_postscript_is_not_run(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    assert "PostScript" in error_of(encoded(photo, "EPS"))


def test_envelopes_are_not_opened(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program was run"))

    def field(record: int, number: int, data: bytes) -> bytes:
        return bytes((0x1C, record, number)) + len(data).to_bytes(2, "big") + data

    head = {60: b"\1\0", 20: b"\0\x10", 30: b"\0\x10", 120: b"\5"}
    stated = b"".join(field(3, number, data) for number, data in head.items())
    for held in (encoded(photo, "EPS"), encoded(photo)):
        data = stated + field(8, 10, held) + b"\0" * 5
        assert Image.open(io.BytesIO(data)).format == "IPTC"
        assert "not an image that Pillow can read" in error_of(data)


def test_an_image_that_is_larger_than_its_header_states(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    data = bytearray(encoded(photo, "ICO"))
    assert data[6:8] == bytes(photo.size), "width and height of the one picture in it"
    data[6:8] = bytes((2, 2))
    monkeypatch.setattr(fetch, "MAX_PIXELS", 100)
    assert "21x13 pixels, over the limit of 100" in error_of(bytes(data))


def test_strings_that_are_nothing() -> None:
    assert "not valid base64" in error_of("data:image/png;base64,????")
    assert "not a base64 data URL" in error_of("data:image/svg+xml,<svg/>")
    assert "not an image" in error_of("data:image/png;base64," + base64.b64encode(b"x" * 99).decode())
    assert "not an image" in error_of(base64.b64encode(b"x" * 99).decode())
    assert "... (5000 characters)" in error_of("x/" * 2500)
    assert "does not exist" in error_of("a\0b")
    assert "does not exist" in error_of("")


def test_other_types() -> None:
    for value in (None, 3, {"url": URL}, object()):
        assert "is not an image" in error_of(value)
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))


def test_schemes_may_be_written_large(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_image_reference(URL.replace("https", "HTTPS"))
    with answering(monkeypatch, lambda _: httpx.Response(404)):
        assert "HTTP 404" in error_of(URL.replace("https", "HTTPS"))


@pytest.mark.parametrize("status", [403, 404, 500])
def test_http_errors_name_the_url(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with answering(monkeypatch, lambda _: httpx.Response(status)):
        assert f"{URL} could not be fetched: HTTP {status}" in error_of(URL)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (httpx.ConnectError("[Errno -2] Name or service not known"), "Name or service not known; is there a network?"),
        (httpx.ReadTimeout("slow"), "within 3 s"),
        (httpx.ConnectTimeout("slow"), "within 3 s"),
        (httpx.RemoteProtocolError("hung up"), "hung up"),
    ],
)
def test_network_failures_name_the_url(monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise failure

    with answering(monkeypatch, fail):
        message = error_of(URL, timeout=3)
    assert URL in message
    assert words in message


def test_a_page_instead_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, lambda _: httpx.Response(200, content=b"<html>")):
        assert f"{URL} is not an image" in error_of(URL)


def test_redirects_are_followed_but_never_to_a_file(monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    def moved(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/photo.png":
            return httpx.Response(302, headers={"location": "/elsewhere.png"})
        return httpx.Response(200, content=encoded(photo))

    with answering(monkeypatch, moved):
        assert load_image(URL).size == photo.size
    with answering(monkeypatch, lambda _: httpx.Response(302, headers={"location": "file:///etc/hostname"})):
        assert URL in error_of(URL)


def test_downloads_are_limited_in_bytes_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 1000)
    with answering(monkeypatch, lambda _: httpx.Response(200, content=(b"x" * 100 for _ in range(10**9)))):
        assert "over the limit of 1000 bytes" in error_of(URL)
    assert "over the limit" in error_of("data:image/png;base64," + "A" * 2000)
    clock = iter(range(0, 10**6, 7))
    monkeypatch.setattr(fetch.time, "monotonic", lambda: float(next(clock)))
    with answering(monkeypatch, lambda _: httpx.Response(200, content=(b"x" for _ in range(100)))):
        assert "within 20 s" in error_of(URL)


def test_what_is_taken_for_an_image(photo: Image.Image) -> None:
    assert all(map(is_image, (photo, b"x", Path("x"), np.zeros(3), torch.zeros(3))))
    assert not any(map(is_image, ("x.png", URL, None, [photo])))
    assert is_image_reference(URL)
    assert is_image_reference("data:image/png;base64,AAAA")
    assert not is_image_reference("https://example.org says <image>")
    assert not is_image_reference("photo.png")


def test_a_real_download_over_the_loopback(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests stand in for `httpx.stream`; this one calls it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data = encoded(photo)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert load_image(f"{url}/a.png", timeout=10).size == photo.size
        assert "HTTP 404" in error_of(f"{url}/b.png", timeout=10)
        server.shutdown()
    assert "could not be fetched" in error_of(f"{url}/a.png", timeout=10)


def test_an_image_knows_what_it_was_read_from(tmp_path: Path) -> None:
    for name, mode in (("grey.png", "L"), ("wide.png", "I;16"), ("plain.png", "RGB"), ("clear.png", "RGBA")):
        path = tmp_path / name
        Image.new(mode, (3, 1)).save(path)
        assert name_of(open_image(path)) == name_of(load_image(str(path))) == str(path)
        assert name_of(load_image(open_image(path)).convert("L")) == str(path)
    assert name_of(load_image(Image.new("RGB", (3, 1)))) == ""


def test_files_bytes_and_rows_of_datasets_are_pictures(photo: Image.Image, tmp_path: Path) -> None:
    data = encoded(photo)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    file = io.BytesIO(data)
    file.read()
    with path.open("rb") as opened:
        for source in (
            file,
            file,
            opened,
            bytearray(data),
            memoryview(data),
            {"bytes": data, "path": None},
            {"bytes": None, "path": str(path)},
            {"path": path},
            {"bytes": file},
            PurePathLike(path),
        ):
            assert is_image(source)
            assert load_image(source).tobytes() == photo.tobytes()


class PurePathLike:
    """A path of another library's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def test_files_and_rows_that_hold_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("no picture")
    with path.open() as text, pytest.raises(ImageError, match=r"words.txt gives str, not bytes; open it with mode 'rb'"):
        load_image(text)
    with pytest.raises(ImageError, match=r"words.txt cannot be read: .*closed"):
        load_image(text)
    with path.open("wb") as written, pytest.raises(ImageError, match=r"words.txt cannot be read"):
        load_image(written)
    for row in ({"bytes": None, "path": None}, {"path": None}):
        with pytest.raises(ImageError, match="neither bytes nor a path"):
            load_image(row)
    assert not is_image({"bytes": b"", "url": "x"})
    with pytest.raises(ImageError, match="of type dict is not an image"):
        load_image({"url": "x"})
