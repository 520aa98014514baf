"""What a grammar of a stranger's may cost: a time and a memory, in a process that ends with it."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from fakes import tiny_processor
from idefics.server.errors import Invalid, Overloaded
from idefics.server.limits import ServerLimits
from idefics.server.prepare import compilers as compilers_module
from idefics.server.prepare.compilers import Compilers
from idefics.server.prepare.grammars import Grammar
from idefics.server.processes.pool import Killed
from serving import fake_app, script, serving, wait_until

BOUNDS = {"grammar_seconds": 0.3, "grammar_memory": 2**28, "compilers": 1}
PATTERNS = {"type": "string", "allOf": [{"pattern": f".*a{number}.*"} for number in range(16)]}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers_module, "PATIENCE", 100)  # the machine may do much else


@pytest.fixture(scope="module")
def compilers() -> Iterator[Compilers]:
    made = Compilers(tiny_processor().tokenizer, (2,), ServerLimits(**BOUNDS))
    yield made
    made.close()


def check(compilers: Compilers, grammar: Grammar) -> None:
    asyncio.run(compilers.check(grammar, (2,)))


def check_patiently(compilers: Compilers, grammar: Grammar) -> None:
    """As `check`, on a machine that does much else: what is cheap is cheap in processor time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilers, "_limits", ServerLimits(**BOUNDS | {"grammar_seconds": 60.0}))
        check(compilers, grammar)


def schema(given: Any) -> Grammar:
    return Grammar("json", json.dumps(given))


def nested(depth: int) -> Any:
    given: Any = {"type": "integer"}
    for _ in range(depth):
        given = {"type": "array", "items": given}
    return given


def product(keyword: str, groups: int, members: int) -> Any:
    names = [[f"p{group}_{member}" for member in range(members)] for group in range(groups)]
    held = [[{"properties": {name: {"type": "integer"}}, "required": [name]} for name in group] for group in names]
    return {"type": "object", "allOf": [{keyword: group} for group in held]}


TREE = {"type": "object", "properties": {"left": {"$ref": "#/$defs/t"}, "right": {"$ref": "#/$defs/t"}}}
NOT_WORTH_IT = {
    "allOf of patterns": schema(PATTERNS),
    "allOf of patterns in an array": schema({"type": "array", "items": PATTERNS}),
    "a large multiple": schema({"type": "integer", "multipleOf": 9_999_991}),
    "multiples of multiples": schema({"allOf": [{"type": "integer", "multipleOf": number} for number in (997, 991, 983)]}),
    "itself": schema({"$ref": "#"}),
    "each other": schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    "a product of anyOf": schema(product("anyOf", 10, 4)),
    "a product of oneOf": schema(product("oneOf", 10, 4)),
    "not": schema({"type": "string", "not": {"pattern": "a"}}),
    "if": schema({"if": {"type": "string"}, "then": {"minLength": 3}}),
    "patterns of properties that overlap": schema({"patternProperties": {"^a{1,50}.*b": {}, "^a{1,51}.*b": {}}}),
    "nested deeply": schema(nested(300)),
    "a range of endless numbers": schema({"type": "integer", "minimum": -(10**300), "maximum": 10**300}),
    "looking ahead": Grammar("regex", "(?=.*a)(?=.*b)c"),
    "looking behind": Grammar("regex", "(?<!a)b"),
    "parentheses": Grammar("regex", "(" * 30_000 + ")" * 30_000),
    "more than may be sent": Grammar("regex", "a" * 70_000),
}
CHEAP = {
    "long strings": schema({"type": "string", "minLength": 1_000_000, "maxLength": 1_000_000_000}),
    "many items": schema({"type": "array", "minItems": 10_000, "items": {"type": "integer"}}),
    "a large enum": schema({"enum": [f"value {number}" for number in range(3_000)]}),
    "a tree": schema({"$defs": {"t": TREE}, "$ref": "#/$defs/t"}),
    "nested counts": Grammar("regex", "(a{1,1000}){1,1000}"),
    "nested counts of classes": Grammar("regex", r"((\p{L}{1,1000}){1,1000}){1,1000}x"),
    "alternatives": Grammar("regex", "|".join(f"word{number}" for number in range(5_000))),
    "states": Grammar("regex", ".*a.{1000}"),
}


@pytest.mark.parametrize("grammar", NOT_WORTH_IT.values(), ids=NOT_WORTH_IT.keys())
def test_what_costs_too_much_is_refused_in_time(compilers: Compilers, grammar: Grammar) -> None:
    began = time.monotonic()
    with pytest.raises(Invalid, match=r"^grammar is not valid: "):
        check(compilers, grammar)
    assert time.monotonic() - began < 10
    check_patiently(compilers, Grammar("regex", "a|b"))


@pytest.mark.parametrize("grammar", CHEAP.values(), ids=CHEAP.keys())
def test_what_looks_large_and_is_not_is_taken(compilers: Compilers, grammar: Grammar) -> None:
    check_patiently(compilers, grammar)


def test_the_bounds_are_named(compilers: Compilers) -> None:
    with pytest.raises(Invalid, match=r"took over 0\.3 s to compile; make it simpler"):
        check(compilers, NOT_WORTH_IT["a large multiple"])
    small = Compilers(tiny_processor().tokenizer, (2,), ServerLimits(compilers=1, grammar_memory=2**23, grammar_seconds=60))
    with pytest.raises(Invalid, match="took more than 8388608 bytes of memory to compile; make it simpler"):
        check(small, schema(PATTERNS))
    small.close()


def test_a_grammar_is_tried_once(compilers: Compilers, monkeypatch: pytest.MonkeyPatch) -> None:
    check_patiently(compilers, Grammar("regex", "tried once"))
    monkeypatch.setattr(compilers, "_pool", None)
    check(compilers, Grammar("regex", "tried once"))
    with pytest.raises(AttributeError):
        check(compilers, Grammar("regex", "never tried"))


def test_a_refusal_is_remembered_for_a_while(compilers: Compilers, monkeypatch: pytest.MonkeyPatch) -> None:
    costly, wrong = schema({"type": "integer", "multipleOf": 9_999_973}), Grammar("regex", "(never closed")
    told = []
    for grammar in (costly, wrong):
        with pytest.raises(Invalid) as refused:
            check(compilers, grammar)
        told.append(str(refused.value))
    monkeypatch.setattr(compilers, "_pool", None)
    for grammar, first in zip((costly, wrong), told, strict=True):
        with pytest.raises(Invalid) as refused:
            check(compilers, grammar)
        assert str(refused.value) == first
    monkeypatch.setattr(compilers_module, "REFUSED_SECONDS", 0.0)
    with pytest.raises(AttributeError):
        check(compilers, costly)


def test_what_is_remembered_is_bounded() -> None:
    kept: dict[Any, int] = {}
    for number in (*range(300), 299, 44):
        compilers_module._keep(kept, number, number)  # type: ignore[arg-type]
    assert list(kept) == [*range(45, 299), 299, 44]


def test_a_busy_machine_is_no_grammars_fault(compilers: Compilers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_slow(*_: Any, **__: Any) -> int:
        raise Killed("time")

    slow = Grammar("regex", "slow for once")
    with monkeypatch.context() as patch:
        patch.setattr(compilers._pool, "run", too_slow)
        with pytest.raises(Overloaded, match="too busy to compile this grammar in 30 s; try again later"):
            check(compilers, slow)
    check_patiently(compilers, slow)


def test_equal_grammars_are_compiled_once(compilers: Compilers, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Grammar] = []

    async def run(task: Any, **_: Any) -> int:
        ran.append(task[0])
        await asyncio.sleep(0.01)
        if task[0].source == "costly":
            raise Killed("processor")
        return 0

    async def go() -> list[type]:
        asked = (Grammar("regex", source) for source in ("costly", "cheap", "costly", "cheap", "costly"))
        done = await asyncio.gather(*(compilers.check(grammar, (2,)) for grammar in asked), return_exceptions=True)
        return [type(outcome) for outcome in done]

    monkeypatch.setattr(compilers._pool, "run", run)
    assert asyncio.run(go()) == [Invalid, type(None), Invalid, type(None), Invalid]
    assert sorted(grammar.source for grammar in ran) == ["cheap", "costly"]
    gc.collect()  # errors hold where they were raised
    assert not compilers._lines


def test_what_is_large_once_it_is_compiled_is_refused(compilers: Compilers, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ServerLimits(**BOUNDS | {"grammar_seconds": 60.0, "grammar_held": 2**20})
    monkeypatch.setattr(compilers, "_limits", limits)
    for multiple in (5_003, 5_009):  # of which the first leaves room in the process for the second
        with pytest.raises(Invalid, match=r"compiled it takes 2\d{6} bytes, over the limit of 1048576; make it simpler"):
            check(compilers, schema({"type": "integer", "multipleOf": multiple}))
    check(compilers, schema({"type": "integer", "multipleOf": 7}))


def test_nobody_waits_for_a_grammar_of_strangers() -> None:
    limits = ServerLimits(workers=1, compilers=2, grammar_seconds=1.0)
    app = fake_app(FakeEngine(script()), limits=limits)
    grammars = [{"type": "json", "value": given} for given in (PATTERNS, {"type": "integer", "multipleOf": 9_999_991})]
    answers: list[httpx.Response] = []

    def ask(grammar: Any) -> None:
        body = {"inputs": "a", "parameters": {"grammar": grammar}}
        answers.append(httpx.post(f"{address}/generate", json=body, timeout=60))

    with serving(app) as address, httpx.Client(timeout=60) as client:
        asking = [threading.Thread(target=ask, args=(grammar,)) for grammar in grammars]
        for thread in asking:
            thread.start()
        wait_until(lambda: app.state.service.open == 2)
        assert client.post(f"{address}/generate", json={"inputs": "a" * 2_000}).status_code == 422
        assert client.post(f"{address}/generate", json={"inputs": "a " * 200}).status_code == 200
        assert not answers, "others wait until the grammars are given up"
        assert client.get(f"{address}/health").status_code == 200
        for thread in asking:
            thread.join()
        for answer in answers:
            assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
            assert "to compile; make it simpler" in answer.json()["error"]
        chat = {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema"}}
        chat["response_format"] |= {"json_schema": {"name": "a", "schema": {"$ref": "#"}}}  # type: ignore[operator]
        told = client.post(f"{address}/v1/chat/completions", json=chat)
        assert (told.status_code, told.json()["error"]["type"]) == (400, "invalid_request_error")
        assert "no answer can follow it" in told.json()["error"]["message"]
        assert "idefics_compilers_killed_total{reason=" in client.get(f"{address}/metrics").text


def test_who_leaves_ends_the_compiling() -> None:
    async def go() -> None:
        task = asyncio.ensure_future(made.check(schema(PATTERNS), (2,)))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(made.check(Grammar("regex", "a|b"), (2,)), 20)

    killed: list[str] = []
    made = Compilers(tiny_processor().tokenizer, (2,), ServerLimits(compilers=1, grammar_seconds=600.0), killed.append)
    asyncio.run(made.check(Grammar("regex", "a"), (2,)))
    asyncio.run(go())
    made.close()
    assert killed == ["left"]
