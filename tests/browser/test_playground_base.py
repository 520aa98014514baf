"""The playground over models without chats: it asks by one text, which the model continues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import idefics
from browser.chromium import Tab
from contract.conftest import Served, serving_model
from fake_engine import FakeEngine
from fakes import tiny_tokenizer
from idefics.assets import DEMO
from idefics.server.limits import ServerLimits
from idefics.weights.create import create_checkpoint
from serving import data_url, fake_app, png, script, serving, wait_until

THING = DEMO / "thing.png"
LONG = script("the red image " * 30)
STATUS = "document.querySelector('#status').textContent"
PROMPT = "[...document.querySelectorAll('#plan th')].find((e) => e.textContent === 'Prompt').nextSibling.textContent"
RECORD = """
window.lengths = [];
new MutationObserver(() => window.lengths.push(document.querySelector(".assistant .text")?.textContent.length ?? 0))
  .observe(document.querySelector("#turns"), { childList: true, characterData: true, subtree: true });
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(fake_app(FakeEngine(script()), chats=False)) as address:
        yield address


def go_on(tab: Tab, text: str, *, turns: int = 1) -> str:
    """Has a text continued; the prompt that was asked."""
    tab.click("#text")
    tab.type(text)
    tab.press("Enter", ctrl=True)
    tab.until(f"{STATUS} === 'Answered' && document.querySelectorAll('.assistant').length === {turns}")
    return str(tab.body("/v1/completions")["prompt"])


def add(tab: Tab, file: Path) -> None:
    tab.drop(file)
    tab.until("document.querySelector('#pictures strong')")


def planned(tab: Tab, *, new: int) -> str:
    """Tokens of the prompt as the page shows them, with so many new ones at most: by these the newest plan is known."""
    if not tab.run("document.querySelector('#more').open"):
        tab.unfold()
    tab.run("document.querySelector('#max_tokens').select()")
    tab.type(str(new))
    tab.until(f"document.querySelector('#plan').innerText.includes('Answer, at most\t{new}')")
    return str(tab.run(PROMPT))


def test_a_text_with_a_dropped_picture_is_continued_while_it_grows(tab: Tab, base: Served) -> None:
    tab.open(f"{base.address}/playground")
    assert "continues your text" in tab.text("#hint")
    assert tab.run("document.querySelector('#text').placeholder") == "Text to continue…"
    assert (tab.text("#send"), tab.text("#clear"), tab.text("#problem")) == ("Continue", "New text", "")
    add(tab, THING)
    assert tab.text("#pictures strong") == "32 tokens"
    tab.run(RECORD)
    typed = "What is this?<reserved>\nAssistant:"
    prompt = go_on(tab, typed)
    assert prompt == f"![]({data_url(THING.read_bytes())}){typed}"
    answer = tab.run("document.querySelector('.assistant .text').textContent")
    assert answer == f" {base.model.generate(f'<image>{typed}', [THING], raw=True, max_new_tokens=256)}"
    lengths = tab.run("window.lengths")
    assert len(set(lengths)) > 2, lengths
    assert lengths == sorted(lengths)
    assert tab.text(".turn h2") == "You\nContinuation"
    assert tab.said() == []


def test_texts_stand_one_after_the_other_as_they_were_written(page: Tab, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    first = " A red\n\n"
    assert go_on(page, first) == first
    said = page.run("document.querySelector('.assistant .text').textContent")
    assert said == " the red image", "with the space that stands between them"
    add(page, tmp_path / "red.png")
    second = f"{first}{said}![]({data_url(png())}) and "
    page.click("#text")
    page.type(" and ")
    prompt_tokens = planned(page, new=99)
    assert go_on(page, "", turns=2) == second
    assert page.text(".assistant:last-child small").startswith(f"{prompt_tokens} + 4 tokens")
    assert go_on(page, "", turns=3) == second + said, "it goes on where nothing is written"
    assert page.text("#turns").count("You") == 2
    assert go_on(page, "\n", turns=4) == second + said * 2 + "\n"
    page.click("#clear")
    page.press("Enter", ctrl=True)
    assert page.text("#turns") == "", "there is nothing to go on with"
    assert page.said() == []


def test_the_first_idefics_continues_texts_too(tab: Tab, tmp_path: Path) -> None:
    create_checkpoint("tiny-random-idefics", tmp_path / "first")
    model = idefics.load(tmp_path / "first", dtype="float32")
    model.processor.chat_template = None  # which follows from the tokenizer, and all tiny models have the same one
    with serving_model(model) as served:
        tab.open(f"{served.address}/playground")
        assert tab.run("document.querySelector('#seeing').hidden"), "its images cannot be adjusted"
        add(tab, THING)
        assert tab.text("#pictures strong") == "1 tokens"
        tab.type("This is")
        prompt_tokens = planned(tab, new=4)
        assert go_on(tab, "") == f"![]({data_url(THING.read_bytes())})This is"
        assert tab.text(".assistant small").startswith(f"{prompt_tokens} + ")
        assert tab.said() == []


def test_stop_retry_and_edit(tab: Tab) -> None:
    engine = FakeEngine(LONG, step_seconds=0.03)
    with serving(fake_app(engine, chats=False)) as address:
        tab.open(f"{address}/playground")
        tab.until("!document.querySelector('#send').disabled")
        tab.type("Once ")
        tab.press("Enter", ctrl=True)
        tab.until("document.querySelector('.assistant .text')?.textContent.length > 20")
        tab.click("#stop")
        tab.until(f"{STATUS} === 'Stopped'")
        wait_until(lambda: len(engine.cancelled) == 1)
        said = tab.run("document.querySelector('.assistant .text').textContent")
        assert 20 < len(said) < 300
        engine.script = script()
        assert go_on(tab, " and", turns=2) == f"Once {said} and", "what came before the stop stays"
        engine.script = script("a yes")
        tab.click(".assistant:last-child button")
        tab.until("document.querySelector('.assistant:last-child .text').textContent.endsWith('a yes')")
        tab.until(f"{STATUS} === 'Answered'")
        assert tab.body("/v1/completions")["prompt"] == f"Once {said} and"
        tab.click(".user button")
        assert tab.run("document.querySelector('#text').value") == "Once "
        assert "continuing it replaces" in tab.text("#editing")
        assert go_on(tab, "more") == "Once more"


def test_in_a_text_enter_breaks_the_line_and_no_questions_are_offered(page: Tab) -> None:
    assert page.text("#examples") == page.text("#knows") == ""
    page.type("one")
    page.press("Enter")
    page.type("two")
    assert page.run("document.querySelector('#text').value") == "one\ntwo"
    assert page.text("#keys").startswith("Ctrl Enter continues, Enter breaks the line")
    assert go_on(page, "") == "one\ntwo"


def test_what_goes_wrong_is_told_and_left_out(page: Tab) -> None:
    page.type("an <image>")
    page.until("document.querySelector('#plan .problem')?.textContent.includes('stands for an image')")
    page.press("Enter", ctrl=True)
    page.until("document.querySelector('.assistant .problem')")
    assert "stands for an image" in page.text(".assistant .problem")
    assert page.text(".assistant small") == "what follows is asked without this text"
    assert go_on(page, "a cat", turns=2) == "a cat"


def test_settings_are_followed(page: Tab) -> None:
    page.unfold()
    page.run("document.querySelector('#max_tokens').select()")
    page.type("2")
    page.click("[name=do_image_splitting]")
    go_on(page, "a")
    sent = page.body("/v1/completions")
    assert (sent["max_tokens"], sent["do_image_splitting"], sent["temperature"]) == (2, True, 0)
    assert page.text(".assistant small").endswith("cut at the limit")


def test_what_the_model_wrote_asks_for_no_image(tab: Tab) -> None:
    written = "![](http://a.b/c.png)<image>"
    known = tiny_tokenizer().backend.token_to_id
    with serving(fake_app(FakeEngine([int(known(letter) or 0) for letter in written]), chats=False)) as address:
        tab.open(f"{address}/playground")
        tab.until("!document.querySelector('#send').disabled")
        go_on(tab, f"one![]({data_url(png())})two ![](")
        assert tab.run("document.querySelector('.assistant .text').textContent") == written
        apart = "! [](http://a.b/c.png)< image>"
        first = f"one![]({data_url(png())})two ! []({apart}"
        assert go_on(tab, "![", turns=2) == f"{first}!["
        assert go_on(tab, "", turns=3) == f"{first}![{apart}"
        assert tab.text(".problem") == ""


@pytest.mark.parametrize(
    ("said", "typed", "asked"),
    [
        ("see ![", "](http://a.b/c.png)", "see ! [](http://a.b/c.png)"),
        ("see ![]", "(below)", "see ! [](below)"),
        ("an <ima", "ge>", "an < image>"),
        ("a !", "[](http://a.b/c.png)", "a ! [](http://a.b/c.png)"),
        ("a [", "b](c)", "a [b](c)"),
    ],
)
def test_what_the_model_began_becomes_no_image_either(tab: Tab, said: str, typed: str, asked: str) -> None:
    known = tiny_tokenizer().backend.token_to_id
    letters = [int(known("▁" if letter == " " else letter) or 0) for letter in said]
    with serving(fake_app(FakeEngine(letters), chats=False)) as address:
        tab.open(f"{address}/playground")
        tab.until("!document.querySelector('#send').disabled")
        go_on(tab, "one")
        assert tab.run("document.querySelector('.assistant .text').textContent") == said
        assert go_on(tab, typed, turns=2) == f"one{asked}"


def test_images_in_the_text_are_not_taken_for_dropped_ones(page: Tab, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(png(24, 30))
    add(page, tmp_path / "own.png")
    alone = page.text("#pictures figcaption")
    page.click("#pictures button")
    go_on(page, f"this ![]({data_url(png(72, 10))}) and ![]({data_url(png(10, 72))}) ![](")
    add(page, tmp_path / "own.png")
    assert page.text("#pictures figcaption") == alone


def test_the_size_of_a_request_counts_every_byte(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    with serving(fake_app(FakeEngine(script()), limits=ServerLimits(body_bytes=500), chats=False)) as address:
        tab.open(f"{address}/playground")
        add(tab, tmp_path / "red.png")
        tab.type('Ünïcödé\n"🙂" ')
        weight = tab.text("#weight")
        go_on(tab, "")
        request = next(each for each in tab.requests()[::-1] if each["url"].endswith("/v1/completions"))
        sent = tab.call("Network.getRequestPostData", requestId=request["id"])["postData"].encode()
        assert weight == f"{len(sent)} B of 500 B"
        add(tab, tmp_path / "red.png")
        tab.type("and this " * 20)
        tab.press("Enter", ctrl=True)
        tab.until("document.querySelector('#problem').textContent.includes(\"over the server's limit of 500\")")
        assert tab.run("document.querySelectorAll('.turn').length") == 2


def test_copied_requests_do_what_the_page_did(tab: Tab, base: Served) -> None:
    tab.open(f"{base.address}/playground")
    tab.run("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    add(tab, THING)
    go_on(tab, "What is \"this\"? '''it''' \\ é 🙂<reserved>\nAssistant:")
    answer = tab.run("document.querySelector('.assistant .text').textContent")
    copied = {}
    for name in ("curl", "Python"):
        tab.click(f"[aria-label='Copy as {name}']")
        tab.until(f"{STATUS}.includes('{name}')")
        copied[name] = tab.run("window.copied")
    body = copied["curl"].split("<<'JSON'\n")[1].removesuffix("\nJSON\n")
    assert json.loads(body) == tab.body("/v1/completions")
    assert "client.completions.create(" in copied["Python"]
    environment = {**os.environ, "NO_PROXY": "*"}

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True).stdout

    events = [json.loads(line[6:]) for line in output("bash", "-c", copied["curl"]).splitlines() if line.startswith("data: {")]
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == answer != ""
    assert output(sys.executable, "-c", copied["Python"]) == f"{answer}\n"
