"""The playground before servers that ask for keys, that fail, and in browsers that keep nothing; and what keys do when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from browser.chromium import Tab
from fake_engine import FakeEngine
from serving import fake_app, script, serving

LONG = script("the red image " * 30)
STATUS = "document.querySelector('#status').textContent"
OPEN = "document.querySelector('#key').open"
TOLD = "document.querySelector('#key-told').textContent"
TROUBLE = "document.querySelector('#trouble').textContent"
MODEL = "document.querySelector('#model').textContent.startsWith('tiny')"
BLOCKED = """
for (const name of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("blocked", "SecurityError"); } });
}
"""


@contextmanager
def locked(tab: Tab) -> Iterator[str]:
    """A page that has just been asked for its key."""
    with serving(fake_app(FakeEngine(script()), api_keys=["open-sesame"])) as address:
        tab.call("Page.navigate", url=f"{address}/playground")
        tab.until(f"document.querySelector('#key')?.open && {TOLD}")
        yield address


def give(tab: Tab, key: str) -> None:
    tab.run("document.querySelector('#key-text').focus()")
    tab.type(key)
    tab.press("Enter")


def ask(tab: Tab, question: str) -> None:
    tab.click("#text")
    tab.type(question)
    tab.press("Enter", ctrl=True)


def test_a_key_that_no_header_can_carry_is_refused_where_it_is_written(tab: Tab) -> None:
    with locked(tab):
        give(tab, "secret…")
        tab.until(f"{TOLD}.includes('cannot be sent')")
        assert tab.run(OPEN)
        assert tab.run("sessionStorage.length") == 0
        tab.run("document.querySelector('#key-text').select()")
        give(tab, "wrong")
        tab.until(f"{TOLD}.includes('does not know')")
        assert tab.run("sessionStorage.length") == 0, "kept once it has worked"
        give(tab, "open-sesame")
        tab.until(MODEL)
        assert tab.run("sessionStorage.getItem('key')") == "open-sesame"


def test_a_key_can_be_kept_back_and_changed(tab: Tab) -> None:
    with locked(tab):
        tab.type("half a k")
        tab.press("Escape")
        tab.until(f"{TROUBLE}.startsWith('No key given')")
        assert tab.run(f"{OPEN} || document.querySelector('#send').disabled === false") is False
        assert all("authorization" not in map(str.lower, each["headers"]) for each in tab.requests()), "half a key is no key"
        for key, told in (("wrong", "does not know"), ("open-sesame", "")):
            tab.click("#change-key")
            tab.until(OPEN)
            give(tab, key)
            if told:
                tab.until(f"{TOLD}.includes('{told}')")
                tab.click("#key [data-leave]")
                tab.until(f"!{OPEN}")
        tab.until(f"{MODEL} && {TROUBLE} === ''")
        ask(tab, "Hello")
        tab.until(f"{STATUS} === 'Answered'")


def test_nobody_is_asked_for_a_key_while_writing(tab: Tab) -> None:
    with locked(tab):
        give(tab, "open-sesame")
        tab.until(MODEL)
        tab.run("window.fetch = ((real) => (url, options) => real(url, { ...options, headers: {} }))(window.fetch)")
        tab.click("#text")
        tab.type("Hello")
        tab.unfold()
        tab.until("document.querySelector('#plan .problem')?.textContent.startsWith('No key given')")
        assert not tab.run(OPEN)


@pytest.mark.parametrize("key", ["Escape", "Enter"])
def test_keys_belong_to_an_open_dialog_and_to_what_is_being_composed(tab: Tab, key: str) -> None:
    with serving(fake_app(FakeEngine(LONG, step_seconds=0.05))) as address:
        tab.open(f"{address}/playground")
        tab.until("!document.querySelector('#send').disabled")
        ask(tab, "One")
        tab.until("document.querySelector('.assistant .text')?.textContent.length > 5")
        if key == "Escape":
            composing = "new KeyboardEvent('keydown', { key: 'Escape', bubbles: true, isComposing: true })"
            tab.run(f"document.querySelector('#text').dispatchEvent({composing})")
        else:
            tab.press("Escape")
            tab.until(f"{STATUS} === 'Stopped'")
        tab.click("#text")
        tab.type("Two")
        tab.run("document.querySelector('#code').showModal()")
        tab.press(key, ctrl=key == "Enter")
        if key == "Escape":
            tab.until("!document.querySelector('#code').open")
            assert tab.run(STATUS) == "Answering…"
            tab.press("Escape")
            tab.until(f"{STATUS} === 'Stopped'")
        assert tab.run("document.querySelectorAll('.user').length") == 1
        assert tab.run("document.querySelector('#text').value") == "Two"


@pytest.mark.parametrize("how", ["isComposing: true", "keyCode: 229", "shiftKey: true", "altKey: true"])
def test_enter_that_confirms_a_word_or_breaks_a_line_sends_nothing(page: Tab, how: str) -> None:
    page.until("!document.querySelector('#send').disabled")
    page.type("にほん")
    enter = f"new KeyboardEvent('keydown', {{ key: 'Enter', bubbles: true, cancelable: true, {how} }})"
    assert page.run(f"document.querySelector('#text').dispatchEvent({enter})"), "the browser does what it does by itself"
    assert page.text("#turns") == ""
    page.press("Enter")
    page.until(f"{STATUS} === 'Answered'")
    assert page.text(".user .text") == "にほん"


def test_enter_while_an_answer_comes_keeps_what_is_written(tab: Tab) -> None:
    with serving(fake_app(FakeEngine(LONG, step_seconds=0.05))) as address:
        tab.open(f"{address}/playground")
        tab.until("!document.querySelector('#send').disabled")
        ask(tab, "One")
        tab.until("document.querySelector('.assistant .text')?.textContent.length > 5")
        tab.click("#text")
        tab.type("Two")
        tab.press("Enter")
        assert tab.run("document.querySelector('#text').value") == "Two"
        assert tab.run("document.querySelectorAll('.user').length") == 1
        tab.press("Escape")
        tab.until(f"{STATUS} === 'Stopped'")


def test_where_keyboards_are_on_glass_enter_breaks_the_line(tab: Tab) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=390, height=664, deviceScaleFactor=1, mobile=True)
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    with serving(fake_app(FakeEngine(script()))) as address:
        tab.open(f"{address}/playground")
        tab.until("!document.querySelector('#send').disabled")
        assert tab.run("matchMedia('(hover: none) and (pointer: coarse)').matches")
        tab.click("#text")
        tab.type("One")
        tab.press("Enter")
        tab.type("Two")
        assert tab.run("document.querySelector('#text').value") == "One\nTwo"
        assert not tab.run("document.querySelector('#keys').checkVisibility()"), "nothing is told of keys that are not there"
        tab.click("#send")
        tab.until(f"{STATUS} === 'Answered'")


def test_a_browser_that_keeps_nothing_shows_the_page_all_the_same(tab: Tab) -> None:
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=BLOCKED)
    with locked(tab):
        give(tab, "open-sesame")
        tab.until(MODEL)
        tab.click("#theme")
        assert tab.run("document.documentElement.dataset.theme") == "dark"
        ask(tab, "Hello")
        tab.until(f"{STATUS} === 'Answered'")
        tab.run("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
        tab.click("[aria-label='Copy as curl']")
        tab.until("window.copied?.includes('$IDEFICS_API_KEY')")


def test_nothing_is_sent_before_the_facts_are_there_and_they_are_asked_for_again(tab: Tab) -> None:
    tab.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.fetch = ((real) => (url, options) => window.up ? real(url, options) "
        ": Promise.reject(new TypeError('Failed to fetch')))(window.fetch)",
    )
    with serving(fake_app(FakeEngine(script()))) as address:
        tab.call("Page.navigate", url=f"{address}/playground")
        tab.until(f"document.readyState === 'complete' && {TROUBLE}.includes('cannot be reached')")
        assert tab.run("document.querySelector('#send').disabled")
        ask(tab, "Hello")
        assert tab.text("#turns") == ""
        tab.run("window.up = true")
        tab.until(f"{MODEL} && {TROUBLE} === ''")
        tab.press("Enter", ctrl=True)
        tab.until(f"{STATUS} === 'Answered'")
        assert "max_image_size" not in tab.body("/v1/chat/completions")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"error": {"message": "ours"}}', "ours"),
        ('{"error": "theirs"}', "theirs"),
        ('{"message": "of a gateway"}', "of a gateway"),
        ('{"detail": "of a framework"}', "of a framework"),
        ('{"detail": [{}]}', "The server answered HTTP 502."),
        ("<html>Bad gateway</html>", "The server answered HTTP 502."),
        ("null", "The server answered HTTP 502."),
    ],
)
def test_errors_of_all_forms_are_told(page: Tab, body: str, told: str) -> None:
    page.run(f"window.fetch = () => Promise.resolve(new Response({json.dumps(body)}, {{ status: 502 }}))")
    ask(page, "Hello")
    page.until("document.querySelector('.assistant .problem')")
    assert page.text(".assistant .problem") == told


@pytest.mark.parametrize("data", ["{}", '{"choices": []}', '{"choices": [{}]}', "no JSON", '{"error": {}}'])
def test_events_of_all_forms_are_read(page: Tab, data: str) -> None:
    body = json.dumps(f"data: {data}\n\ndata: [DONE]\n\n")
    page.run(f"window.fetch = () => Promise.resolve(new Response({body}))")
    ask(page, "Hello")
    page.until(f"['Answered', 'Not answered'].includes({STATUS})")
    wrong = "What the server sent is no event." if data in ("no JSON", '{"error": {}}') else ""
    assert page.text(".assistant .problem") == wrong
