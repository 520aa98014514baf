"""Answers of a given form, as clients ask for them: a JSON schema or a regular expression.

The work is llguidance's: it reads a tokenizer's vocabulary once, and an honest grammar in milliseconds. Others it would compile
for ever, or into gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from idefics.server.errors import Invalid

__all__ = ["Grammar", "Vocabulary", "json_grammar", "named_schema", "not_valid"]

# What one token of an answer may cost. 50,000 states of a lexer are some 20 MB; honest grammars have hundreds. The fuel, which
# is the library's own, lasts 14 ms. Errors do not show the whole parser.
_LIMITS = LLParserLimits(max_lexer_states=50_000, step_lexer_fuel=200_000, step_max_items=50_000, verbose_errors=False)
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


def not_valid(told: str) -> Invalid:
    """The error of a grammar that cannot be followed."""
    plain = " ".join(told.replace("<non-verbose/>", "").split())[:500]
    return Invalid(f"grammar is not valid: {plain}", param="grammar")


class Vocabulary:
    """A tokenizer's vocabulary as grammars are compiled for it, with each set of tokens that end answers.

    For one thread at a time.

    Args:
        tokenizer: its `tokenizer.json`.
    """

    def __init__(self, tokenizer: str) -> None:
        self._tokenizer = tokenizer
        self._read: dict[tuple[int, ...], LLTokenizer] = {}

    def ending(self, ends: Sequence[int]) -> LLTokenizer:
        """The vocabulary with these ends, read when it is first asked for."""
        key = tuple(ends)
        if key not in self._read:
            if len(self._read) > 8:  # stop strings that are special tokens make ends of their own
                self._read.clear()
            self._read[key] = LLTokenizer(self._tokenizer, eos_token=list(ends))
        return self._read[key]

    def compiled(self, grammar: Grammar, ends: Sequence[int]) -> LLMatcher:
        """A matcher at the grammar's beginning. May take for ever, or all memory, of grammars that nobody has tried before.

        Raises:
            Invalid: the grammar is not valid or too complex, or answers could never end.
        """
        if not ends:
            raise Invalid("a grammar needs a token that ends answers, and this checkpoint names none", param="grammar")
        try:
            if grammar.kind == "json":
                source = LLMatcher.grammar_from_json_schema(grammar.source, overrides=_JSON)
            else:
                source = LLMatcher.grammar_from_regex(grammar.source)
            matcher = LLMatcher(self.ending(ends), source, log_level=0, limits=_LIMITS)
        except ValueError as error:
            raise not_valid(str(error)) from None
        if matcher.is_error():
            raise not_valid(matcher.get_error())
        return matcher
