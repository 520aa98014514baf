"""Answers of a given form: a JSON schema or a regular expression allows, at every step, only what can still lead there.

The work is llguidance's: it reads the tokenizer's vocabulary once and a grammar in milliseconds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from idefics.engine.history import BANNED
from idefics.engine.upload import moved, uploaded
from idefics.errors import NumericsError
from idefics.processor.tokenizer import Tokenizer
from idefics.server.errors import Invalid

__all__ = ["Grammar", "Guide", "Guides", "json_grammar", "named_schema"]

KEPT = 16  # grammars that were read and may be asked for again
# A model that would rather not write JSON could otherwise write spaces until its room is full.
_JSON: Any = {"whitespace_flexible": False, "whitespace_pattern": " ?"}
_NAMED = frozenset({"properties", "$defs", "definitions"})  # keywords that map names to schemas
_INNER = frozenset({"items", "prefixItems", "anyOf", "oneOf"})  # keywords that hold schemas
_OPENING = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "if"}
)


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like.

    Attributes:
        kind: of source.
        source: a JSON schema as text, or a regular expression that the whole answer must match.
    """

    kind: Literal["json", "regex"]
    source: str


def named_schema(given: Any, *, param: str) -> Any:
    """The schema in `{"name": ..., "schema": ...}`, which is what both APIs mean by the type `json_schema`.

    Raises:
        Invalid: there is none. The whole would be a schema too, and one that any answer follows.
    """
    if not isinstance(given, dict) or not isinstance(given.get("schema"), dict):
        raise Invalid(
            f"`{param}` of type json_schema takes {{'name': ..., 'schema': {{...}}}}; the type json takes a schema itself",
            param=param,
        )
    return given["schema"]


def json_grammar(schema: Any, *, characters: int) -> Grammar:
    """The grammar of a JSON schema, given as an object or as text of so many characters at most.

    Raises:
        Invalid: neither, or the text is longer.
    """
    if isinstance(schema, str):
        if len(schema) > characters:
            raise Invalid(f"grammar is not valid: {len(schema)} characters are over the limit of {characters}", param="grammar")
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise Invalid(f"grammar is not valid: {error}", param="grammar") from None
    if not isinstance(schema, dict):
        raise Invalid(f"grammar is not valid: a JSON schema is an object, not {type(schema).__name__}", param="grammar")
    try:
        return Grammar("json", json.dumps(_closed(schema)))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"grammar is not valid: {error}", param="grammar") from None


def _closed(schema: Any) -> Any:
    """The schema with objects that hold what is listed and nothing else, unless they say otherwise.

    text-generation-inference does the same: a model would often rather go on inventing properties than close the brace.
    """
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in _NAMED & schema.keys():
        if isinstance(schema[key], dict):
            closed[key] = {name: _closed(inner) for name, inner in schema[key].items()}
    for key in _INNER & schema.keys():
        inner = schema[key]
        closed[key] = [_closed(one) for one in inner] if isinstance(inner, list) else _closed(inner)
    if isinstance(schema.get("properties"), dict) and not _OPENING & schema.keys():
        closed["additionalProperties"] = False
    return closed


class Guide:
    """One answer's filter; keeps where in the grammar the answer stands.

    Args:
        matcher: at the grammar's beginning.
        ends: ids that end an answer.
    """

    def __init__(self, matcher: LLMatcher, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._ends = list(ends)
        self._taken: list[int] = []

    def __call__(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Forbids what cannot lead to an answer of the grammar.

        Raises:
            NumericsError: the grammar has become too complex to go on.
        """
        del prompt
        self._follow(list(answer))
        stopped = self._matcher.is_stopped()
        bias = None if stopped else self._matcher.compute_logit_bias()
        if self._matcher.is_error():
            raise NumericsError(f"the answer cannot follow its grammar any further: {self._matcher.get_error()}")
        if bias is None:
            ends = uploaded(self._ends, logits_V.device)
            return torch.full_like(logits_V, BANNED).index_copy_(0, ends, logits_V[ends])
        off_X = (torch.frombuffer(bytearray(bias), dtype=torch.uint8) == 0)[: len(logits_V)]
        logits_V[: len(off_X)].masked_fill_(moved(off_X, logits_V.device), BANNED)
        logits_V[len(off_X) :] = BANNED  # rows of the head that are no token's
        return logits_V

    def _follow(self, answer: list[int]) -> None:
        """Brings the matcher to the end of the answer, of which it has usually taken all but the last token."""
        taken = self._taken
        if answer[: len(taken)] != taken:
            same = next((i for i, (a, b) in enumerate(zip(taken, answer, strict=False)) if a != b), len(answer))
            self._matcher.rollback(len(taken) - same)
            del taken[same:]
        new = answer[len(taken) :]
        if new:
            self._matcher.consume_tokens(new)
            taken += new


class Guides:
    """Makes guides for one tokenizer, from any thread; its vocabulary is read when the first is asked for.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabularies: dict[tuple[int, ...], LLTokenizer] = {}
        self._read: dict[tuple[Grammar, tuple[int, ...]], LLMatcher] = {}
        self._lock = threading.Lock()

    def of(self, grammar: Grammar, *, answers: int, ends: Sequence[int]) -> list[Guide]:
        """A guide per answer.

        Args:
            grammar: of all of them.
            answers: how many.
            ends: ids that end an answer.

        Raises:
            Invalid: the grammar is not valid or too complex, or answers could never end.
        """
        if not ends:
            raise Invalid("a grammar needs a token that ends answers, and this checkpoint names none", param="grammar")
        key = (grammar, tuple(ends))
        with self._lock:
            matcher = self._read.get(key)
        if matcher is None:  # others need not wait for it
            matcher = self._matcher(*key)
            with self._lock:
                if len(self._read) == KEPT:
                    del self._read[next(iter(self._read))]  # the oldest
                self._read[key] = matcher
        return [Guide(matcher.deep_copy(), ends) for _ in range(answers)]

    def _matcher(self, grammar: Grammar, ends: tuple[int, ...]) -> LLMatcher:
        try:
            if grammar.kind == "json":
                compiled = LLMatcher.grammar_from_json_schema(grammar.source, overrides=_JSON)
            else:
                compiled = LLMatcher.grammar_from_regex(grammar.source)
            matcher = LLMatcher(self._vocabulary(ends), compiled, log_level=0)
        except ValueError as error:
            raise Invalid(f"grammar is not valid: {error}", param="grammar") from None
        if matcher.is_error():
            raise Invalid(f"grammar is not valid: {' '.join(matcher.get_error().split())[:500]}", param="grammar")
        return matcher

    def _vocabulary(self, ends: tuple[int, ...]) -> LLTokenizer:
        with self._lock:
            if ends not in self._vocabularies:
                if len(self._vocabularies) > 8:  # stop strings that are special tokens make ends of their own
                    self._vocabularies.clear()
                self._vocabularies[ends] = LLTokenizer(self._tokenizer.backend.to_str(), eos_token=list(ends))
            return self._vocabularies[ends]
