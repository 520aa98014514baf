"""Images come from public addresses only, and cost no more than allowed."""

from __future__ import annotations

import asyncio
import io
import socket
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from fake_engine import FakeEngine
from idefics.errors import ImageError
from idefics.server.images.addresses import AddressRule, is_public
from idefics.server.images.data_urls import data_bytes
from idefics.server.images.decoder import Decoder
from idefics.server.images.jpeg import scans
from idefics.server.images.source import ImageSource
from idefics.server.limits import ServerLimits
from serving import data_url, fake_app, image_host, png, script

PRIVATE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::",
    "2002:a00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "fec0::1",
    "::ffff:0:127.0.0.1", "::ffff:0:10.0.0.1", "1::1", "4000::1", "64:ff9b:2::1", "fe00::1", "3ffe::1", "100::1", "5f00::1",
    "3fff::1", "2002:a9fe:a9fe::1", "8000::1", "e000::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "192.169.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808",
          "::ffff:0:8.8.8.8", "2002:808:808::1", "2a00:1450:4001::1"]  # fmt: skip


def fetch(*urls: str, rule: AddressRule | None = None, **limits: Any) -> list[bytes]:
    async def run() -> list[bytes]:
        source = ImageSource(ServerLimits(**limits), rule or AddressRule(private=True))
        try:
            async with source.fetched(urls) as found:
                return [found[url] if url in found else data_bytes(url, ServerLimits(**limits).image_bytes) for url in urls]
        finally:
            await source.close()

    return asyncio.run(run())


def decode(encoded: list[bytes], limits: ServerLimits) -> list[Image.Image]:
    decoder = Decoder(limits)
    return [decoder.image(data, f"image {number} of {len(encoded)}") for number, data in enumerate(encoded, 1)]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]",
     "user:pw@127.0.0.1", "169.254.169.254", "0.0.0.0", "LOCALHOST", "127.0.0.1."],
)  # fmt: skip
def test_the_own_machine_is_not_asked_however_it_is_written(host: str) -> None:
    with image_host({"/a.png": (200, {}, png())}) as address:
        port = address.rpartition(":")[2]
        with pytest.raises(ImageError, match=r"not a public address|cannot be found"):
            fetch(f"http://{host}:{port}/a.png", rule=AddressRule(), image_seconds=5)


def test_a_redirect_is_checked_again() -> None:
    targets = ["http://127.0.0.2:1/x", "file:///etc/passwd", "ftp://a.b/c", "gopher://127.0.0.1/"]
    with image_host({f"/{i}": (302, {"Location": target}, b"") for i, target in enumerate(targets)}) as address:
        with pytest.raises(ImageError, match=r"127\.0\.0\.2 is not a public address"):
            fetch(f"{address}/0", rule=AddressRule(allowed=["127.0.0.1"]))
        for i in (1, 2, 3):
            with pytest.raises(ImageError, match="http and https URLs only"):
                fetch(f"{address}/{i}")


def test_a_name_is_looked_up_once_and_the_checked_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name == "rebinding.test":
            asked.append(name)
            # Another answer each time, as a name server of an attacker would give.
            host = "127.0.0.1" if len(asked) > 1 else "203.0.113.9"
        return real(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with image_host({"/a.png": (200, {}, png())}) as address:
        port = address.rpartition(":")[2]
        allowed = AddressRule(allowed=["203.0.113.0/24"])
        with pytest.raises(ImageError, match=r"could not be fetched"):
            fetch(f"http://rebinding.test:{port}/a.png", rule=allowed, image_seconds=1)
        assert asked == ["rebinding.test"]
        with pytest.raises(ImageError, match="not a public address"):
            fetch(f"http://rebinding.test:{port}/a.png", rule=allowed, image_seconds=1)


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        del host, arguments, options
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(ImageError, match="not a public address"):
        fetch("http://mixed.test/a.png", rule=AddressRule())


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/8", "images.test", ".test", "IMAGES.test."])
def test_the_allow_list_opens(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: real("127.0.0.1" if "test" in str(host) else host, *a, **o)
    )
    with image_host({"/a.png": (200, {}, png())}) as address:
        port = address.rpartition(":")[2]
        url = f"http://images.test:{port}/a.png"
        assert fetch(url, rule=AddressRule(allowed=[entry])) == [png()]
        with pytest.raises(ImageError, match="not a public address"):
            fetch(url, rule=AddressRule(allowed=["10.0.0.0/8", "test.images", "mages.test"]))


@pytest.mark.parametrize(
    "reference",
    ["file:///etc/passwd", "/etc/passwd", "etc/passwd", "ftp://a.b/c.png", "data:text/plain,hello", "data:image/png;base64,@@@",
     "http://", "http://[::1", "http:///a.png", "https://a b/c", "javascript:alert(1)", "", "C:\\x.png", "//a.b/c.png"],
)  # fmt: skip
def test_what_is_no_image_url(reference: str) -> None:
    with pytest.raises(ImageError):
        fetch(reference, rule=AddressRule(), image_seconds=2)


def test_data_urls_in_all_their_forms() -> None:
    url = data_url(png())
    forms = [
        url,
        url.replace("data:", "DATA:"),
        url.replace("image/png", ""),
        url.replace("+", "%2B"),
        f"{url[:80]}\n {url[80:]}",
    ]
    assert fetch(*forms) == [png()] * len(forms)


def test_bytes_time_redirects_and_count_are_bounded() -> None:
    replies = {
        "/large": (200, {}, b"x" * 5_000),
        "/endless": (200, {"Content-Length": str(10**12)}, b"x" * 5_000),
        "/slow": 3.0,
        "/loop": (302, {"Location": "/loop"}, b""),
        "/missing": (404, {}, b""),
        "/a.png": (200, {}, png()),
        "/to": (301, {"Location": "a.png"}, b""),
    }
    with image_host(replies) as host:
        for path, told in (
            ("/large", "over the limit of 1000 bytes"),
            ("/endless", "over the limit of 1000 bytes"),
            ("/slow", r"could not be fetched within 0\.5 s"),
            ("/loop", "more than 2 redirects"),
            ("/missing", "HTTP 404"),
        ):
            began = time.monotonic()
            with pytest.raises(ImageError, match=told):
                fetch(host + path, image_bytes=1_000, image_seconds=0.5, redirects=2)
            assert time.monotonic() - began < 2.5
        assert fetch(f"{host}/to") == [png()]
    with pytest.raises(ImageError, match="over the limit of 100 bytes"):
        fetch(data_url(b"x" * 1_000), image_bytes=100)


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000)) + chunk(b"IEND", b"")
    began = time.monotonic()
    with pytest.raises(ImageError, match="image 1 of 1 holds more pixels"):
        decode([bomb], ServerLimits())
    assert time.monotonic() - began < 1


def test_files_that_are_programs_or_broken_are_refused() -> None:
    cut = png(300, 300)[:200]
    for data in (b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", cut, b"<svg/>"):
        with pytest.raises(ImageError, match=r"image 2 of 2"):
            decode([png(), data], ServerLimits())


def test_images_are_read_as_the_processor_reads_them() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (10, 20), (9, 8, 7, 0)).save(out, "PNG")
    (found,) = decode([out.getvalue()], ServerLimits())
    assert (found.mode, found.size, found.getpixel((0, 0))) == ("RGB", (10, 20), (9, 8, 7))


def iptc(content: bytes) -> bytes:
    """An IPTC file that states 16x16 grey pixels and holds another file."""

    def field(record: int, number: int, data: bytes) -> bytes:
        return bytes((0x1C, record, number)) + struct.pack(">H", len(data)) + data

    head = {60: b"\1\0", 20: b"\0\x10", 30: b"\0\x10", 120: b"\5"}
    pieces = [field(8, 10, content[at : at + 30_000]) for at in range(0, len(content), 30_000)]
    return b"".join(field(3, number, data) for number, data in head.items()) + b"".join(pieces) + b"\0" * 5


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def test_files_that_hold_other_files_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    large = png(3_000, 3_000)
    with Image.open(io.BytesIO(iptc(large))) as opened:
        assert opened.size == (16, 16), "the file states less than it holds"
    for data in (iptc(large), iptc(saved(Image.new("RGB", (9, 9)), "EPS")), saved(Image.new("RGB", (99, 99)), "ICO")):
        with pytest.raises(ImageError, match="image 1 of 1 is no image of a known format"):
            decode([data], ServerLimits(image_pixels=1_000))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO"])
def test_formats_that_are_read(form: str) -> None:
    options = {"save_all": True, "append_images": [Image.new("RGB", (20, 10))]} if form == "MPO" else {}
    (found,) = decode([saved(Image.new("RGB", (20, 10), (9, 8, 7)), form, **options)], ServerLimits())
    assert (found.mode, found.size) == ("RGB", (20, 10))


def test_images_that_grow_when_they_are_loaded_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idefics.server.images.decoder.upright_image", lambda _: Image.new("RGB", (41, 30)))
    with pytest.raises(ImageError, match="41x30 pixels, more than its header states"):
        decode([png(40, 30)], ServerLimits())


def progressive(side: int, *, extra: int) -> bytes:
    """A JPEG whose last scan stands in it some more times."""
    plain = saved(Image.new("RGB", (side, side), (200, 30, 30)), "JPEG", progressive=True)
    return plain[:-2] + plain[plain.rindex(b"\xff\xda") : -2] * extra + plain[-2:]


def test_jpegs_of_many_scans_are_refused_before_they_are_decoded() -> None:
    assert decode([progressive(300, extra=0)], ServerLimits())[0].size == (300, 300)
    many = progressive(2_000, extra=250)
    began = time.thread_time()
    with pytest.raises(ImageError, match="image 1 of 1 is a JPEG of more scans than the limit of 32"):
        decode([many], ServerLimits())
    assert time.thread_time() - began < 0.3
    with pytest.raises(ImageError, match="pixels times scans"):
        decode([progressive(300, extra=20)] * 2, ServerLimits(scan_pixels=50 * 300 * 300))


def test_what_only_looks_like_a_scan_is_none() -> None:
    plain = progressive(64, extra=0)
    own = scans(plain, enough=1_000)
    assert 6 <= own <= 12
    false = b"\xff\xda" * 50
    within = plain[:2] + b"\xff\xe5" + struct.pack(">H", len(false) + 2) + false + plain[2:]
    for data in (within, plain + false):
        assert scans(data, enough=20) == own
        assert len(decode([data], ServerLimits())) == 1
    # Bytes between segments, padding before markers and restart markers hide no scan.
    hidden = plain[:-2] + b"abc\xff\x00\xff\xff\xd3\xff\xff\xff\xda\x00\x02" * 40 + plain[-2:]
    assert scans(hidden, enough=32) == 33
    began = time.thread_time()
    for filling in (b"\xff", b"\xff\x00", b"\xff\xd0", b"\xff\xe0\x00\x02"):
        scans(b"\xff\xd8" + b"\xff\xd9" + false + filling * (2**21 // len(filling)), enough=32)
        scans(b"\xff\xd8" + filling * (2**21 // len(filling)) + b"\xff\xd9" + false, enough=32)
    assert time.thread_time() - began < 3


def test_tiffs_of_jpegs_are_charged_for_their_scans() -> None:
    tiff = saved(Image.new("RGB", (300, 300)), "TIFF", compression="jpeg")
    assert decode([tiff], ServerLimits())[0].size == (300, 300)
    with pytest.raises(ImageError, match="pixels times scans"):
        decode([tiff], ServerLimits(scan_pixels=300 * 300 // 2))


@pytest.mark.parametrize("location", ["http://[::1", "http://[", "//[", "http://a]b/"])
def test_a_redirect_to_nowhere(location: str) -> None:
    with image_host({"/a": (302, {"Location": location}, b"")}) as address:
        with pytest.raises(ImageError, match=r"is no URL|which is no URL"):
            fetch(f"{address}/a")
        with TestClient(fake_app(FakeEngine(script()))) as client:
            answer = client.post("/generate", json={"inputs": f"![]({address}/a)"})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_long_urls_are_not_gone_through() -> None:
    with pytest.raises(ImageError, match="has 20007 characters, over the limit of 8192 for a URL"):
        fetch("http://" + "a" * 20_000)


@pytest.mark.parametrize(
    ("payload", "told"),
    [("aGk=aGk=", "base64"), ("aG", "base64"), ("aG%41=", "base64"), ("a%2", "base64"), ("=", "base64"), ("%" * 99, "base64"),
     ("\u00e9" * 8, "base64"), ("aGk=" + " " * 2**18 + "aGk=", "base64"), ("A" * 4_000_000, "over the limit of 999999 bytes")],
)  # fmt: skip
def test_data_that_is_not_base64(payload: str, told: str) -> None:
    with pytest.raises(ImageError, match=told):
        data_bytes(f"data:image/png;base64,{payload}", 999_999)


def test_escapes_and_blocks_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) + b"\xff\xfe\xfb\xef" * 9 + b"x"
    plain = data_url(data).partition(",")[2]
    escaped = plain.replace("+", "%2b").replace("/", "%2F").replace("=", "%3D") + "%0d%0A%20"
    for piece in range(3, 20):
        monkeypatch.setattr("idefics.server.images.data_urls._PIECE", piece)
        for form in (plain, escaped, "\n".join(plain)):
            assert data_bytes(f"data:;base64,{form}", 10_000) == data
