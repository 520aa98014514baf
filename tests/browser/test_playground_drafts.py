"""What is being written in the playground: it is sent whole, comes back after an edit, and is never lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser.chromium import Tab
from fake_engine import FakeEngine
from idefics.server.limits import ServerLimits
from serving import data_url, fake_app, png, script, serving

LONG = script("the red image " * 30)
STATUS = "document.querySelector('#status').textContent"
TEXT = "document.querySelector('#text').value"
SLOW_FILES = """
const read = FileReader.prototype.readAsDataURL;
window.held = [];
window.release = () => window.held.splice(0).forEach((go) => go());
FileReader.prototype.readAsDataURL = function (file) {
  window.held.push(() => read.call(this, file));
};
"""
PASTE = """
((text, name) => {
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File(["no image"], name, { type: "image/png" }));
  clipboardData.setData("text/plain", text);
  const event = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
  document.activeElement.dispatchEvent(event);
  return event.defaultPrevented; // the page took the files, and the text does not come
})
"""


@contextmanager
def slow(tab: Tab) -> Iterator[Tab]:
    """A page whose engine takes its time."""
    with serving(fake_app(FakeEngine(LONG, step_seconds=0.05))) as address:
        tab.open(f"{address}/playground")
        yield tab


def drop(tab: Tab, folder: Path, *names: str) -> None:
    """Images one after another, each 10 pixels wider than the one before."""
    for index, name in enumerate(names):
        (folder / name).write_bytes(png(20 + 10 * index, 30))
        tab.drop(folder / name)


def ask(tab: Tab, question: str) -> None:
    tab.click("#text")
    tab.type(question)
    tab.press("Enter", ctrl=True)


def answered(tab: Tab, question: str) -> None:
    ask(tab, question)
    tab.until(f"{STATUS} === 'Answered'")


def names(tab: Tab, selector: str) -> list[str]:
    return list(tab.run(f"[...document.querySelectorAll('{selector} canvas')].map((e) => e.ariaLabel)"))


def test_a_message_waits_for_its_images(page: Tab, tmp_path: Path) -> None:
    page.run(SLOW_FILES)
    drop(page, tmp_path, "first.png", "second.png")
    ask(page, "What are these?")
    page.until(f"{STATUS} === 'Reading images…'")
    page.press("Enter", ctrl=True)
    assert page.text("#turns") == ""
    page.until("(window.release(), document.querySelectorAll('.user canvas').length === 2)")
    page.until(f"{STATUS} === 'Answered'")
    assert names(page, ".user") == ["first.png", "second.png"]
    assert len(page.body("/v1/chat/completions")["messages"][0]["content"]) == 3
    assert page.run("document.querySelectorAll('.turn').length") == 2, "sent once"
    assert page.text("#pictures") == ""


def test_images_on_their_way_are_gone_with_their_message(page: Tab, tmp_path: Path) -> None:
    page.run(SLOW_FILES)
    drop(page, tmp_path, "late.png")
    ask(page, "What is this?")
    page.until(f"{STATUS} === 'Reading images…'")
    page.click("#clear")
    page.until(f"{STATUS} === ''")
    page.run("(window.release(), new Promise((resolve) => setTimeout(resolve, 300)))")
    assert names(page, "body") == []
    assert page.text("#turns") == ""


def test_a_message_is_not_sent_without_the_image_that_could_not_be_read(page: Tab, tmp_path: Path) -> None:
    page.run(SLOW_FILES)
    (tmp_path / "broken.png").write_bytes(b"no image")
    drop(page, tmp_path, "good.png")
    page.drop(tmp_path / "broken.png")
    ask(page, "What are these?")
    page.until("(window.release(), document.querySelector('#problem').textContent.startsWith('broken.png'))")
    assert page.text("#turns") == ""
    assert page.run(TEXT) == "What are these?"
    page.press("Enter", ctrl=True)
    page.until(f"{STATUS} === 'Answered'")
    assert names(page, ".user") == ["good.png"]


def test_a_question_that_failed_is_left_out_of_later_ones(page: Tab, tmp_path: Path) -> None:
    drawing = tmp_path / "drawing.svg"
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><rect width="9" height="9"/></svg>')
    page.drop(drawing)
    page.until("document.querySelector('#pictures canvas')")
    ask(page, "What is this?")
    page.until("document.querySelector('.assistant .problem')")
    answered(page, "Hello")
    assert [message["content"][0]["text"] for message in page.body("/v1/chat/completions")["messages"]] == ["Hello"]
    assert "without this question" in page.text(".assistant small")


def test_an_edit_gives_the_draft_back(page: Tab, tmp_path: Path) -> None:
    drop(page, tmp_path, "sent.png")
    page.until("document.querySelector('#pictures canvas')")
    answered(page, "One")
    answered(page, "Two")
    drop(page, tmp_path, "draft.png")
    page.until("document.querySelector('#pictures canvas')")
    page.type("Half a th")
    for leave in ("Escape", "send"):
        page.click(".user button")
        assert (page.run(TEXT), names(page, "#pictures"), names(page, ".user")) == ("One", ["sent.png"], ["sent.png"])
        described = "document.querySelector('#text').getAttribute('aria-describedby')"
        assert page.run(described).startswith("editing-told")
        assert page.run("[...document.querySelectorAll('.turn button')].filter((e) => e.ariaDisabled === 'true').length") == 4
        page.click(".turn:nth-child(3) button")  # another turn's
        page.click(".assistant:last-child button")  # Retry
        assert page.run(TEXT) == "One", "neither does anything now"
        if leave == "send":
            answered(page, " more")
        else:
            page.press("Escape")
        assert (page.run(TEXT), names(page, "#pictures")) == ("Half a th", ["draft.png"])
        assert page.run(described) == "keys"
    assert page.text(".user .text") == "One more"
    assert names(page, ".user") == ["sent.png"]


def test_turns_stay_as_they_are_while_an_answer_runs(tab: Tab) -> None:
    with slow(tab):
        ask(tab, "Go on")
        tab.until("document.querySelector('.assistant .text')?.textContent.length > 9")
        assert tab.run("document.querySelector('.user button').ariaDisabled") == "true"
        tab.click(".user button")
        assert tab.run(TEXT) == ""
        tab.click("#clear")
        tab.run("new Promise((resolve) => setTimeout(resolve, 300))")
        assert (tab.run(STATUS), tab.text("#turns")) == ("", ""), "of a chat that is gone nothing is said"
        assert tab.run("document.querySelector('#hint').hidden") is False


def test_captions_are_those_of_their_pictures(page: Tab, tmp_path: Path) -> None:
    drop(page, tmp_path, "own.png")
    page.until("document.querySelector('#pictures strong')")
    alone = page.text("#pictures figcaption")
    page.click("#pictures button")
    answered(page, f"What is ![]({data_url(png(72, 10))})?")
    drop(page, tmp_path, "own.png")
    page.until("document.querySelector('#pictures strong')")
    assert page.text("#pictures figcaption") == alone


def test_pasted_text_stays_text_though_a_picture_of_it_comes_with_it(page: Tab) -> None:
    page.run("document.querySelector('#text').focus()")
    assert page.run(f"{PASTE}('1\\t2\\n3\\t4', 'image.png')") is False
    assert page.run(f"{PASTE}('/home/me/my cat.png\\n', 'my cat.png')") is True
    assert page.run(f"{PASTE}('file:///home/me/my%20cat.png', 'my cat.png')") is True
    assert page.run(f"{PASTE}('', 'image.png')") is True
    page.run("document.activeElement.blur()")
    assert page.run(f"{PASTE}('1\\t2', 'image.png')") is True, "nowhere else could the text go"


def test_what_was_read_is_let_go(page: Tab, tmp_path: Path) -> None:
    page.run("""
      window.held = new Set();
      const make = URL.createObjectURL, revoke = URL.revokeObjectURL;
      URL.createObjectURL = (file) => { const url = make(file); window.held.add(url); window.made = true; return url; };
      URL.revokeObjectURL = (url) => { window.held.delete(url); revoke(url); };
    """)
    drop(page, tmp_path, "a.png", "b.png")
    page.until("document.querySelectorAll('#pictures canvas').length === 2")
    assert page.run("window.made && window.held.size === 0")
    red = "document.querySelector('#pictures canvas').getContext('2d').getImageData(5, 5, 1, 1).data.slice(0, 3).join()"
    assert page.run(red) == "200,30,30", "and is still seen"


def test_a_size_is_the_servers_until_the_slider_is_moved(tab: Tab, address: str) -> None:
    tab.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="const json = JSON.parse; JSON.parse = (text) => "
        "{ const o = json(text); return o?.longest_edge ? { ...o, longest_image: 980, longest_edge: 500 } : o; }",
    )
    tab.open(f"{address}/playground")
    tab.unfold()
    assert tab.text("output[for=max_image_size]") == "500 px"
    answered(tab, "Hello")
    assert "max_image_size" not in tab.body("/v1/chat/completions")
    tab.run("document.querySelector('#max_image_size').focus()")
    tab.press("ArrowRight")
    assert tab.text("output[for=max_image_size]") in ("504 px", "518 px")
    ask(tab, "Hello")
    tab.until("document.querySelectorAll('.assistant').length === 2")
    assert tab.body("/v1/chat/completions")["max_image_size"] in (504, 518)


def test_the_size_of_a_request_counts_every_byte(tab: Tab, tmp_path: Path) -> None:
    with serving(fake_app(FakeEngine(script()), limits=ServerLimits(body_bytes=2000))) as address:
        tab.open(f"{address}/playground")
        drop(tab, tmp_path, "a.png", "b.png")
        tab.until("document.querySelectorAll('#pictures canvas').length === 2")
        tab.type("Ünïcödé 🙂")
        tab.until("document.querySelector('#weight').textContent.endsWith('of 1.95 KiB')")
        told = tab.text("#weight")
        tab.press("Enter", ctrl=True)
        tab.until(f"{STATUS} === 'Answered'")
        request = next(each for each in tab.requests()[::-1] if each["url"].endswith("/v1/chat/completions"))
        sent = tab.call("Network.getRequestPostData", requestId=request["id"])["postData"].encode()
        assert told == f"{len(sent)} B of 1.95 KiB" or told == f"{len(sent) / 1024:.3g} KiB of 1.95 KiB"
