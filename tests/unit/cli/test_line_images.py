"""Images found in a line that somebody typed, or dropped files into."""

from __future__ import annotations

from pathlib import Path

import pytest

from idefics.cli.images import attach, parts_of_line, reference
from idefics.errors import ImageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, photo: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del photo, picture
    (tmp_path / "notes").write_text("not an image")
    (tmp_path / "it's.png").write_bytes((tmp_path / "plain.png").read_bytes())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "text", "images"),
    [
        ("What is 1/2 of it?", "What is 1/2 of it?", []),
        ("What's on the dog's nose?", "What's on the dog's nose?", []),
        ("take notes and go on", "take notes and go on", []),
        ("he said \"hello\" and 'bye'", "he said \"hello\" and 'bye'", []),
        ("What is this? plain.png", "What is this?", ["plain.png"]),
        ("plain.png What is this?", "What is this?", ["plain.png"]),
        ("What is in plain.png?", "What is in ?", ["plain.png"]),
        ("compare './plain.png' and \"my photos/a red one.png\".", "compare and .", ["./plain.png", "my photos/a red one.png"]),
        (r"my\ photos/a\ red\ one.png what?", "what?", ["my photos/a red one.png"]),
        ("'it\\'s' fine", "'it\\'s' fine", []),
        (r"it\'s.png what?", "what?", ["it's.png"]),
        ("./my photos/a red one.png what?", "what?", ["my photos/a red one.png"]),
        ("./notes what?", "what?", ["./notes"]),
        ("is it https://example.com/a.jpg, or http://b.org/x?y=1&z=2 ?", "is it , or ?",
         ["https://example.com/a.jpg", "http://b.org/x?y=1&z=2"]),
        ("no/such/file.PNG what?", "what?", ["no/such/file.PNG"]),
        ("data:image/png;base64,AAAA what?", "what?", ["data:image/png;base64,AAAA"]),
        ("file:///a%20b.png file:///c.png", "", ["file:///a%20b.png", "file:///c.png"]),
        ("", "", []),
    ],
)  # fmt: skip
def test_lines(line: str, text: str, images: list[str]) -> None:
    assert parts_of_line(line) == (text, images)


def test_absolute_paths(photo: Path, picture: Path) -> None:
    escaped = str(photo).replace(" ", "\\ ")
    for dropped in (f"'{photo}'", f'"{photo}"', escaped, str(photo)):
        assert parts_of_line(f"{dropped} {picture} what?") == ("what?", [str(photo), str(picture)])


def test_file_urls(photo: Path) -> None:
    url = photo.as_uri()
    assert "%20" in url
    assert reference(url) == str(photo)
    assert reference(url.replace("file://", "file://this-machine")) == str(photo)
    assert attach(url).source == str(photo)
    with pytest.raises(ImageError, match="names no file"):
        reference("file://")


def test_attached_images_are_named_by_absolute_path() -> None:
    assert attach("plain.png").source == str(Path("plain.png").absolute())
