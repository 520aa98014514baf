"""The playground in a real browser, over the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from browser.chromium import Tab
from contract.conftest import Served
from idefics.assets import DEMO, KNOWLEDGE

THING, LEFT, RIGHT = DEMO / "thing.png", DEMO / "left.png", DEMO / "right.png"
PASTE = """
(async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 40 });
  canvas.getContext("2d").fillRect(0, 0, 20, 20);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([blob], "shot.png", { type: "image/png" }));
  document.activeElement.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
})()
"""
RECORD = """
window.lengths = [];
new MutationObserver(() => {
  const texts = document.querySelectorAll(".assistant .text");
  const length = texts[texts.length - 1]?.textContent.length ?? 0;
  if (length !== window.lengths.at(-1)) window.lengths.push(length);
}).observe(document.querySelector("#turns"), { childList: true, characterData: true, subtree: true });
"""
ANSWERED = "document.querySelector('#status').textContent === 'Answered'"


@pytest.fixture
def page(tab: Tab, served: Served) -> Tab:
    tab.open(f"{served.address}/playground")
    return tab


def add(page: Tab, *files: Path) -> None:
    page.choose("#files", *files)
    page.until(f"document.querySelectorAll('#pictures canvas').length === {len(files)}")


def ask(page: Tab, question: str) -> str:
    page.click("#text")
    page.type(question)
    page.click("#send")
    page.until(ANSWERED)
    return page.text(".assistant:last-child .text")


def test_it_loads_in_peace_and_asks_nobody_else(page: Tab, served: Served) -> None:
    page.until("document.querySelectorAll('#plan table').length === 2")
    assert page.text("#model") == "idefics2-nano · bfloat16 · cpu"
    hosts = {urlsplit(each["url"]).netloc for each in page.requests() if not each["url"].startswith("blob:")}
    assert hosts == {urlsplit(served.address).netloc}
    assert page.said() == []
    page.run("fetch('https://example.com/').catch(() => 0)")
    page.run("document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.inline = 1' }))")
    assert page.run("window.inline === undefined")
    assert any("Content Security Policy" in told for told in page.said()), "the policy holds"


def test_a_dropped_file_is_shown_planned_and_answered_while_it_grows(page: Tab, served: Served) -> None:
    page.drop(THING)
    page.until("document.querySelector('#pictures strong')?.textContent === '32 tokens'")
    assert "thing.png" in page.run("document.querySelector('#pictures canvas').ariaLabel")
    page.run(RECORD)
    answer = ask(page, "Describe the image.")
    assert answer == served.model.generate("Describe the image.", images=THING)
    lengths = page.run("window.lengths")
    assert len(lengths) > 2, lengths
    assert lengths == sorted(lengths)
    assert page.text("#pictures") == "", "the message is sent"
    assert page.text(".user .text") == "Describe the image."
    assert "tokens" in page.text(".assistant small")
    assert page.said() == []


def test_a_real_drop_event_of_a_script(page: Tab) -> None:
    """What drag-and-drop tools and other pages dispatch, with a DataTransfer of their own."""
    page.run(
        PASTE.replace("document.activeElement", "document.querySelector('main')").replace(
            'new ClipboardEvent("paste", { clipboardData,', 'new DragEvent("drop", { dataTransfer: clipboardData,'
        )
    )
    page.until("document.querySelector('#pictures canvas')?.ariaLabel === 'shot.png'")


def test_chosen_and_pasted_images_can_be_taken_out_again(page: Tab) -> None:
    add(page, LEFT, RIGHT)
    page.run(PASTE)
    page.until("document.querySelectorAll('#pictures strong').length === 3")
    assert "60\u00a0×\u00a040" in page.text("#pictures li:last-child")
    page.click("#pictures li:first-child button")
    assert page.run("[...document.querySelectorAll('#pictures canvas')].map((i) => i.ariaLabel)") == ["right.png", "shot.png"]
    assert page.run("document.activeElement.ariaLabel") == "Remove right.png"


def test_the_plan_and_the_request_follow_the_settings(page: Tab) -> None:
    page.unfold()
    add(page, THING)
    page.until("document.querySelector('#pictures strong')?.textContent === '32 tokens'")
    prompt = "[...document.querySelectorAll('#plan th')].find((e) => e.textContent === 'Prompt').nextSibling.textContent"
    whole = int(page.run(prompt))
    page.click("[name=do_image_splitting]")
    page.until("document.querySelector('#pictures strong').textContent === '160 tokens'")
    assert int(page.run(prompt)) == whole + 4 * 33
    page.click("[name=max_image_size]")
    page.click("[name=temperature]")
    for name, value in (("max_tokens", 3), ("seed", 7), ("repetition_penalty", 1.5)):
        page.run(f"document.querySelector('#{name}').select()")
        page.type(str(value))
    ask(page, "What is this?")
    sent = page.body("/v1/chat/completions")
    assert sent["do_image_splitting"] is True
    assert 48 < sent["max_image_size"] < 168
    assert sent["temperature"] == 1
    assert (sent["max_tokens"], sent["seed"], sent["repetition_penalty"], sent["top_p"]) == (3, 7, 1.5, 1)
    assert sent["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    page.run("document.querySelector('#max_tokens').select()")
    page.type("2048")
    page.until("document.querySelector('#plan').innerText.includes('do not fit')")


def test_edit_and_retry(page: Tab, served: Served) -> None:
    add(page, THING)
    first = ask(page, "What is this?")
    ask(page, "What color is it?")
    page.click(".assistant:last-child [type=button]")
    page.until(ANSWERED)
    assert len(page.body("/v1/chat/completions")["messages"]) == 3
    page.click(".user:first-child button")
    assert page.run("document.querySelector('#text').value") == "What is this?"
    assert page.run("document.querySelectorAll('.replaced').length") == 4
    page.press("Escape")
    assert page.run("document.querySelectorAll('.replaced, #pictures canvas').length") == 0
    page.click(".user:first-child button")
    page.run("document.querySelector('#text').select()")
    answer = ask(page, "What color is it?")
    assert page.run("document.querySelectorAll('.turn').length") == 2
    assert answer == served.model.generate("What color is it?", images=THING) != first
    assert page.said() == []


def test_files_that_are_no_images_are_refused_where_they_were_dropped(page: Tab, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    page.drop(tmp_path / "notes.txt", THING)
    page.until("document.querySelectorAll('#pictures canvas').length === 1")
    assert page.text("#problem") == "notes.txt is no image that this browser can read."
    page.drop(LEFT)
    page.until("document.querySelectorAll('#pictures canvas').length === 2")
    assert page.text("#problem") == ""


def test_an_image_that_the_server_refuses_is_told_in_the_answers_place(page: Tab, tmp_path: Path) -> None:
    drawing = tmp_path / "drawing.svg"
    drawing.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><rect width="9" height="9"/></svg>')
    add(page, drawing)
    page.click("#text")
    page.type("What is this?")
    page.click("#send")
    page.until("document.querySelector('.assistant .problem')")
    assert "image 1 of 1" in page.text(".assistant .problem")
    assert page.text("#status") == "Not answered"


def test_dark_and_light(page: Tab) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(paper)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.until(f"{paper} !== '{light}'")
    page.until("document.querySelector('#theme').ariaPressed === 'true'")
    page.click("#theme")
    assert page.run(paper) == light
    page.call("Page.reload")
    page.until("document.readyState === 'complete' && document.documentElement.dataset.theme")
    assert page.run(paper) == light, "the choice is kept"


def test_without_a_mouse(page: Tab) -> None:
    assert page.run("document.activeElement.id") == "text", "one can write at once"
    page.type("Hello")
    page.press("Enter", shift=True)
    page.type("there")
    page.press("Enter")
    page.until(ANSWERED)
    assert page.text(".user .text") == "Hello\nthere"
    page.run("document.querySelector('#more summary').focus()")
    page.press("Enter")
    page.until("document.querySelector('#more').open")
    assert page.run("document.querySelectorAll('.turn').length") == 2, "Enter elsewhere sends nothing"
    page.run("document.querySelector('.skip').focus()")
    order = []
    for _ in range(40):
        name = page.run("((e) => e.ariaLabel || e.id || e.firstChild?.textContent.trim())(document.activeElement)")
        if name in order:
            break
        order.append(name)
        page.press("Tab")
    shown = [
        "skip", "clear", "theme", "Edit", "Retry", "Copy", "Copy as curl", "Copy as Python", "text", "choose",
        "send", "Settings and plan", "max_image_size", "temperature", "top_p", "max_tokens", "repetition_penalty", "seed",
    ]  # fmt: skip
    assert [name for name in order if name in shown] == shown
    unnamed = page.run(
        "[...document.querySelectorAll('button, input:not([hidden]), textarea')]"
        ".filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert unnamed == []


def test_one_click_asks_about_a_picture_of_the_demo(page: Tab) -> None:
    page.until("document.querySelectorAll('#examples button').length === 3")
    assert page.text("#knows") == KNOWLEDGE
    talks = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    asked = [(talk["images"], talk["turns"][0]) for talk in talks if len(talk["images"]) == 1]
    page.type("a draft")
    for number, ((image,), turn) in enumerate(asked[:3], 1):
        page.until("[...document.querySelectorAll('#examples img')].every((image) => image.complete && image.naturalWidth)")
        page.click(f"#examples li:nth-child({number}) button")
        page.until(ANSWERED)
        assert page.text(".user .text") == turn["question"]
        assert page.run("document.querySelector('.user canvas').ariaLabel") == image
        assert page.text(".assistant .text") == turn["answer"]
        assert page.run("document.querySelector('#text').value") == "a draft", "what was being written stays"
        assert page.run("document.querySelector('#welcome').hidden")
        page.run("document.querySelector('#clear').click(); document.querySelector('#text').value = 'a draft'")
        assert page.run("!document.querySelector('#welcome').hidden")
    assert page.said() == []


def test_the_end_stays_in_sight_when_something_grows(page: Tab) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=664, deviceScaleFactor=1, mobile=True)
    log = "document.querySelector('#log')"
    end = f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight < 2"
    add(page, THING)
    ask(page, "What is this?")
    ask(page, "What color is it?")
    page.until(f"{log}.scrollHeight > {log}.clientHeight && {end}")
    page.run("document.querySelector('.assistant:last-child .text').append('\\n\\nand a few\\nlines more')")
    page.until(end, seconds=2)
    add(page, LEFT, RIGHT)
    page.until(end, seconds=2)


def test_narrow(page: Tab) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    assert page.run("document.documentElement.scrollWidth") <= 390
