"""Whatever the model would rather say, a guided answer is of its grammar."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from fakes import tiny_idefics
from idefics.engine.sampling_params import sampling_params
from idefics.server.errors import Invalid
from idefics.server.prepare import grammars as grammars_module
from idefics.server.prepare import guides as guides_module
from idefics.server.prepare.grammars import Grammar, json_grammar
from idefics.server.prepare.guides import Guide, Guides

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["color", "count"],
    "additionalProperties": False,
}


def answer(grammar: Grammar, **options: Any) -> str:
    model = tiny_idefics(std=0.2)
    params = sampling_params(model.defaults, {"max_new_tokens": 200, **options})
    inputs = model.processor.inputs(["the red"], [[]])
    guides = Guides(model.processor.tokenizer).of(grammar, answers=params.candidates, ends=params.eos_token_id)
    model.engine.add(inputs, params, guides=guides)
    ids: list[int] = []
    while model.engine.busy:
        for event in model.engine.step():
            assert event.finish in (None, "eos"), event
            ids.append(event.id)  # type: ignore[union-attr]
    return model.processor.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_json(seed: int | None) -> None:
    options = {} if seed is None else {"do_sample": True, "seed": seed}
    found = json.loads(answer(json_grammar(SCHEMA, characters=1_000), **options))
    assert found["color"] in ("red", "blue")
    assert 0 <= found["count"] <= 99


@pytest.mark.parametrize("pattern", ["(yes|no)", "[a-c]{3}-[0-9]{2}", "ja, |nein"])
def test_regex(pattern: str) -> None:
    for seed in (1, 2, 3):
        assert re.fullmatch(pattern, answer(Grammar("regex", pattern), do_sample=True, seed=seed))


def test_candidates_have_guides_of_their_own() -> None:
    model = tiny_idefics(std=0.2)
    params = sampling_params(model.defaults, {"max_new_tokens": 30, "n": 3, "do_sample": True, "seed": 1})
    guides = Guides(model.processor.tokenizer).of(Grammar("regex", "[a-d]{6}"), answers=3, ends=params.eos_token_id)
    model.engine.add(model.processor.inputs(["a"], [[]]), params, guides=guides)
    ids: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while model.engine.busy:
        for event in model.engine.step():
            ids[event.candidate].append(event.id)  # type: ignore[union-attr]
    texts = [model.processor.decode(row, skip_special_tokens=True) for row in ids.values()]
    assert all(re.fullmatch("[a-d]{6}", text) for text in texts)
    assert len(set(texts)) > 1


def test_a_guide_follows_an_answer_that_goes_back() -> None:
    tokenizer = tiny_idefics().processor.tokenizer
    (guide,) = Guides(tokenizer).of(Grammar("regex", "ab|cd"), answers=1, ends=[2])
    a, b, c, d = (tokenizer.backend.token_to_id(letter) for letter in "abcd")

    def allowed(answer: list[int], guide: Guide = guide) -> set[int]:
        logits_V = guide(torch.zeros(len(tokenizer)), [], answer)
        return set(torch.isfinite(logits_V).nonzero().flatten().tolist())

    first = allowed([])
    assert {a, c} <= first
    assert not {b, d} & first
    assert b in allowed([a])
    assert d in allowed([c])
    assert allowed([a, b]) == {2}
    assert allowed([]) == first


@pytest.mark.parametrize(
    "schema", ["", "[1]", "{", {"type": "nonsense"}, {"$ref": "#/nowhere"}, {"pattern": "(", "type": "string"}]
)
def test_what_is_no_schema(schema: Any) -> None:
    with pytest.raises(Invalid, match="grammar is not valid"):
        Guides(tiny_idefics().processor.tokenizer).of(json_grammar(schema, characters=1_000), answers=1, ends=[2])


def test_objects_are_closed_unless_they_say_otherwise() -> None:
    inner = {"type": "object", "properties": {"items": {"type": "integer"}}}
    nested = {"type": "array", "items": {"properties": {}}}
    listed = {"properties": {"properties": inner, "b": nested, "c": {"additionalProperties": True}}}
    closed = json.loads(json_grammar(listed, characters=1_000).source)
    assert closed["properties"]["properties"] == {**inner, "additionalProperties": False}
    assert closed["properties"]["b"]["items"] == {"properties": {}, "additionalProperties": False}
    assert closed["properties"]["c"] == {"additionalProperties": True}
    assert closed["additionalProperties"] is False
    for left_open in ({"type": "object"}, {"properties": {}, "allOf": [inner]}, {"properties": {}, "patternProperties": {}}):
        assert json.loads(json_grammar(left_open, characters=1_000).source) == left_open


def test_a_grammar_needs_an_end() -> None:
    with pytest.raises(Invalid, match="a token that ends answers"):
        Guides(tiny_idefics().processor.tokenizer).of(Grammar("regex", "a"), answers=1, ends=[])


def test_a_grammar_is_read_once_and_its_guides_go_their_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_idefics().processor.tokenizer
    guides, (a, b, c) = Guides(tokenizer), (tokenizer.backend.token_to_id(letter) for letter in "abc")
    first, other = (guides.of(Grammar("regex", "ab|cd"), answers=1, ends=[2])[0] for _ in range(2))
    first(torch.zeros(len(tokenizer)), [], [a])
    assert torch.isfinite(other(torch.zeros(len(tokenizer)), [], [])[[a, c]]).all()
    monkeypatch.setattr(grammars_module, "LLMatcher", None)
    (again,) = guides.of(Grammar("regex", "ab|cd"), answers=1, ends=[2])
    assert not torch.isfinite(again(torch.zeros(len(tokenizer)), [], [])[b])
    with pytest.raises(AttributeError):  # another end is another grammar
        guides.of(Grammar("regex", "ab|cd"), answers=1, ends=[a])
    monkeypatch.undo()
    for number in range(2 * guides_module.KEPT):
        guides.of(Grammar("regex", "a" * (number + 1)), answers=1, ends=[2])
    assert len(guides._read) == guides_module.KEPT


def test_an_answer_whose_grammar_costs_too_much_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_idefics(std=0.2)
    params = sampling_params(model.defaults, {"max_new_tokens": 20})
    guides = Guides(model.processor.tokenizer).of(Grammar("regex", "[a-z ]{500}"), answers=1, ends=params.eos_token_id)
    other = model.engine.add(model.processor.inputs(["a"], [[]]), params)
    number = model.engine.add(model.processor.inputs(["the red"], [[]]), params, guides=guides)
    monkeypatch.setattr(guides_module, "SECONDS", 0.0)
    events = [event for event in iter(model.engine.step, []) if event]
    ended = [event for step in events for event in step if event.row == number]
    assert [event.finish for event in ended] == ["error"]
    assert isinstance(ended[0].error, Invalid)  # type: ignore[union-attr]
    assert "following it took over 0 s of an answer's time" in str(ended[0].error)  # type: ignore[union-attr]
    assert [event for step in events for event in step if event.row == other][-1].finish in ("eos", "length")
