"""What the playground looks like, to eyes and to screen readers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from browser.chromium import Tab
from fake_engine import FakeEngine
from serving import fake_app, script, serving

STATUS = "document.querySelector('#status').textContent"
COLORS = """
(() => {
  const probe = document.body.appendChild(document.createElement("i"));
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  const color = (name) => {
    probe.style.color = `var(${name})`;
    context.fillStyle = getComputedStyle(probe).color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const names = ["paper", "sheet", "wash", "ink", "faint", "accent", "on-accent", "wrong", "edge"];
  return Object.fromEntries(names.map((name) => [name, color(`--${name}`)]));
})()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(fake_app(FakeEngine(script("the red image " * 60), step_seconds=0.02))) as address:
        yield address


def ask(tab: Tab, question: str) -> None:
    tab.run("document.querySelector('#text').focus()")
    tab.type(question)
    tab.press("Enter", ctrl=True)


def contrast(one: list[int], other: list[int]) -> float:
    """As WCAG reckons it."""

    def light(color: list[int]) -> float:
        parts = [c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for value in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_and_controls_stand_out(page: Tab, theme: str) -> None:
    page.run(f"document.documentElement.dataset.theme = '{theme}'")
    colors = page.run(COLORS)
    least = dict.fromkeys(product(("ink", "faint", "wrong"), ("paper", "sheet", "wash")), 4.5)
    least |= dict.fromkeys(product(("edge", "accent"), ("paper", "sheet", "wash")), 3.0)
    least["on-accent", "accent"] = 4.5
    ratios = {pair: contrast(*(colors[name] for name in pair)) for pair in least}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < least[pair]} == {}
    for control in ("#clear", "#box", "#max_tokens"):
        outline = page.run(f"getComputedStyle(document.querySelector('{control}')).borderTopColor")
        assert outline == f"rgb({', '.join(map(str, colors['edge']))})"


@pytest.mark.parametrize(("width", "height"), [(390, 664), (320, 568)])
def test_on_a_phone_the_answer_is_followed_and_the_composer_stays(page: Tab, width: int, height: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)
    ask(page, "Go on " * 20)
    page.until("document.querySelector('.assistant .text')?.textContent.length > 400")
    edges = page.run(
        "Object.fromEntries(['#stop', '#text', '#log', '.assistant .text'].map((selector) => "
        "[selector, document.querySelector(selector).getBoundingClientRect()].map((e) => e.toJSON?.() ?? e)))"
    )
    assert all(edges[name]["top"] > 0 and edges[name]["bottom"] <= height for name in ("#stop", "#text", "#log"))
    assert edges[".assistant .text"]["bottom"] <= edges["#log"]["bottom"]
    assert edges["#log"]["height"] > 100
    assert page.run("document.querySelector('#model').clientWidth") > 100
    assert page.run("document.documentElement.scrollWidth") <= width
    page.unfold()
    page.run("document.querySelector('#settings').scrollIntoView()")
    page.until("document.querySelector('#settings').getBoundingClientRect().top < innerHeight")
    assert page.run("document.documentElement.scrollWidth") <= width


def test_an_answer_leaves_the_rest_alone_and_is_read_out_once_and_whole(page: Tab) -> None:
    ask(page, "One")
    page.until(f"{STATUS} === 'Answered'")
    page.run(
        "window.heard = []; new MutationObserver(() => window.heard.push(document.querySelector('#announcer').textContent))"
        ".observe(document.querySelector('#announcer'), { childList: true })"
    )
    ask(page, "Two")
    page.until("document.querySelectorAll('.assistant').length === 2")
    assert page.run("document.querySelector('#log').ariaBusy") == "true"
    assert page.run("document.querySelector('#log').ariaLive") == "off"
    page.run("document.querySelector('[aria-label=\"Copy as curl\"]').focus()")
    page.run("getSelection().selectAllChildren(document.querySelector('.user .text'))")
    page.until(f"{STATUS} === 'Answered'")
    assert page.run("document.activeElement.ariaLabel") == "Copy as curl"
    assert page.run("getSelection().toString()") == "One"
    assert page.run("window.heard") == [page.run("document.querySelector('.assistant:last-child .text').textContent")]
    assert page.run("document.querySelector('#log').ariaBusy") == "false"


def test_places_where_something_will_be_told_are_known_before(page: Tab) -> None:
    shown = "[...document.querySelectorAll('#status, [role=alert], #problem')].map((e) => getComputedStyle(e).display)"
    assert "none" not in page.run(shown)


def test_settings_and_plan_are_folded_below_and_told_in_short(page: Tab) -> None:
    assert page.run("document.querySelector('#settings').checkVisibility()") is False
    page.until("document.querySelector('#brief').textContent.endsWith('of 512 tokens')")
    edges = "['#box', '#more'].map((name) => document.querySelector(name).getBoundingClientRect())"
    low = f"(([box, more]) => more.top >= box.bottom)({edges})"
    assert page.run(low)
    page.unfold()
    assert page.run("document.querySelector('#settings').checkVisibility()")
    assert page.run(low)
