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

from idefics.errors import ImageError
from idefics.server.addresses import AddressRule, is_public
from idefics.server.images import ImageSource, decode
from idefics.server.limits import ServerLimits
from serving import data_url, image_host, png

PRIVATE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::",
    "2002:a00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "fec0::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "192.169.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


def fetch(*urls: str, rule: AddressRule | None = None, **limits: Any) -> list[bytes]:
    async def run() -> list[bytes]:
        source = ImageSource(ServerLimits(**limits), rule or AddressRule(private=True))
        try:
            return await source.fetch(urls)
        finally:
            await source.close()

    return asyncio.run(run())


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
    with pytest.raises(ImageError, match="10000 images in one request are over the limit of 64"):
        fetch(*["http://a.b/c.png"] * 10_000)
    with pytest.raises(ImageError, match="over the limit of 100 bytes"):
        fetch(data_url(b"x" * 1_000), image_bytes=100)


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000)) + chunk(b"IEND", b"")
    began = time.monotonic()
    with pytest.raises(ImageError, match="image 1 of 1 has"):
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
