"""Templates that would take the machine: each ends soon, in a refusal, whatever it loops over or makes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from idefics.errors import TemplateError
from idefics.processor import sandbox
from idefics.processor.template import IDEFICS2_TEMPLATE, render

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
LOOP = "{% for i in range(100000) %}"
TWICE = "{% set n = namespace(x=START) %}{% for i in range(60) %}{% set n.x = STEP %}{% endfor %}{{ n.x }}"


def _twice(start: str, step: str) -> str:
    return TWICE.replace("START", start).replace("STEP", step)


ENDLESS = {
    "loops": LOOP * 3 + "{% endfor %}" * 3,
    "loops that write": LOOP * 2 + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + "{% endfor %}" * 2,
    "a long range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "loops of filters": LOOP + "{{ range(100000) | map('string') | list | length }}{% endfor %}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that calls itself twice":
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a loop that calls itself": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "a text times a number": "{{ 'a' * 10 ** 10 }}",
    "a number times a text": "{{ 10000000000 * 'a' }}",
    "a text times in turns": "{{ 'a' * 9999 * 9999 * 9999 }}",
    "a list times a number": "{{ [0] * 10 ** 10 }}",
    "a list of long texts": "{{ ['a' * 4000000] * 100000 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a power in turns": _twice("10", "n.x * n.x"),
    "a text that doubles": _twice("'a'", "n.x ~ n.x"),
    "a sum that doubles": _twice("'a'", "n.x + n.x"),
    "a list that doubles": _twice("[0]", "n.x + n.x"),
    "a list of lists": _twice("[0]", "[n.x, n.x]"),
    "a mapping of mappings": _twice("{}", "{'a': n.x, 'b': n.x}"),
    "a tuple of tuples": _twice("(0,)", "(n.x, n.x)"),
    "a namespace of namespaces": _twice("0", "namespace(a=n, b=n)"),
    "a dict of dicts": _twice("0", "dict(a=n.x, b=n.x)"),
    "a block that doubles": "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "{{ x }}",
    "replace": _twice("'aa'", "n.x.replace('a', n.x)"),
    "the filter replace": _twice("'aa'", "n.x | replace('a', n.x)"),
    "replace within map": "{{ range(100000) | map('replace', '', 'a' * 4000000) | list }}",
    "join": "{{ (range(100000) | list) | join('a' * 4000000) }}",
    "the method join": "{{ ('a' * 4000000).join(['b'] * 100000) }}",
    "the join of a text": "{{ ('a' * 4000000) | join('a' * 4000000) }}",
    "center": "{{ 'a'.center(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "format": "{{ '{:10000000000}'.format('a') }}",
    "a format with %": "{{ '%10000000000d' % 1 }}",
    "the filter center": "{{ 'a' | center(10000000000) }}",
    "the filter format": "{{ '%10000000000d' | format(1) }}",
    "the filter indent": "{{ ('a\n' * 1000000) | indent(10000) }}",
    "the filter round": "{{ 1.5 | round(1000000000, 'floor') }}",
    "the filter sum": "{{ ([[1] * 100000] * 30) | sum(start=[]) }}",
    "tojson": "{{ [1, [2, [3]]] | tojson(indent=10000000000) }}",
    "to_bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(1000000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'a' * 1000000}) }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "slices that are kept": "{% set n = namespace(x=[]) %}{% set s = 'a' * 4000000 %}" + LOOP
    + "{% set n.x = n.x + [s[i:]] %}{% endfor %}",
    "the time at length": "{{ strftime_now('%1000000000Y') }}",
    "a message at length": "{{ raise_exception('a' * 4000000) }}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep loops": "{% for i in [1] %}" * 500 + "{% endfor %}" * 500,
    "a long source": "a" * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS.keys())
def test_templates_without_end_are_refused_soon(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    began = time.perf_counter()
    with pytest.raises(TemplateError) as refused:
        render(template, MESSAGES)
    assert time.perf_counter() - began < 5
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (IDEFICS2_TEMPLATE, "User:<image>What is this?<end_of_utterance>\n"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }}{% endfor %}", "1/1 last"),
        ("{% for k, v in messages[0].items() %}{{ k }} {% endfor %}", "role content "),
        ("{% for x in nothing %}{{ x }}{% else %}none{% endfor %}", "none"),
        ("{{ [1, 2] + [3] }}{{ 2 * 3 }}{{ 'a' * 3 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 7 // 2 }}", "[1, 2, 3]6aaa310243"),
        ("{{ 'a' ~ 1 ~ none }}{{ ('a', 'b') | join('-') }}{{ {'a': 1} | tojson }}", 'a1Nonea-b{"a": 1}'),
        ("{% set n = namespace(x=0) %}{% for i in range(5) %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}", "10"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}{{ m('b') }}", "<a><b>"),
        ("{{ messages | map(attribute='role') | join }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
         "user1"),
        ("{{ messages[0]['content'][1]['text'].split(' ')[0] | upper | replace('W', 'V') | trim }}", "VHAT"),
        ("{{ {'a': [1, 2]} | tojson(indent=2) }}{{ 'a\nb' | indent(2) }}", '{\n  "a": [\n    1,\n    2\n  ]\n}a\n  b'),
        ("{% for i in [3, [4]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}", "34"),
        ("{{ 'x' if 'a' in ('a', 'b') and 1 in [1] else 'y' }}{% set a, b = 1, 2 %}{{ a }}{{ b }}", "x12"),
    ],
)  # fmt: skip
def test_what_chat_templates_do_is_as_it_was(template: str, said: str) -> None:
    assert render(template, MESSAGES) == said


def test_long_chats_are_well_within_the_bounds() -> None:
    turn: list[dict[str, Any]] = [{**MESSAGES[0]}, {"role": "assistant", "content": [{"type": "text", "text": "word " * 200}]}]
    began = time.perf_counter()
    assert len(render(IDEFICS2_TEMPLATE, turn * 1000)) > 1_000_000
    assert time.perf_counter() - began < 5
