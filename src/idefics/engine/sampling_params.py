"""How to continue a prompt: one frozen value per request, checked when it is made.

Nothing here imports torch. Names are those of the Hugging Face library where it has one, because that is what
`generation_config.json` and users speak.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from idefics.errors import OptionError

__all__ = ["SamplingParams", "sampling_params", "unknown_defaults"]

Words = tuple[tuple[int, ...], ...]

# Options that only mean something when tokens are drawn at random.
_RANDOM = ("temperature", "top_k", "top_p", "typical_p", "min_p", "best_of")
# Keys of a `generation_config.json` that say nothing about how tokens are chosen here.
_BOOKKEEPING = frozenset(
    {"transformers_version", "bos_token_id", "_from_model_config", "use_cache", "output_attentions", "output_hidden_states"}
)
_ALIASES = {"stop_strings": "stop", "stop_sequences": "stop", "num_return_sequences": "n", "min_tokens": "min_new_tokens"}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    Attributes:
        max_new_tokens: tokens to generate at most.
        max_length: prompt and new tokens together at most; used where `max_new_tokens` is None.
        min_new_tokens: no end of sequence before that many.
        do_sample: draw at random; otherwise the likeliest token is taken.
        temperature: logits are divided by it.
        top_k: only the k likeliest tokens.
        top_p: the likeliest tokens whose probabilities reach p (arXiv 1904.09751).
        typical_p: the most typical tokens whose probabilities reach p (arXiv 2202.00666).
        min_p: tokens at least this likely, relative to the likeliest (arXiv 2407.01082).
        seed: of this request's generator; None draws one. Greedy decoding needs none, and ignores it.
        repetition_penalty: divides the logits of tokens in prompt or answer, or multiplies negative ones (arXiv 1909.05858).
        frequency_penalty: subtracted per occurrence in the answer.
        presence_penalty: subtracted once if in the answer.
        no_repeat_ngram_size: no n-gram of prompt and answer occurs twice; 0 turns it off.
        num_beams: beams of beam search; 1 turns it off.
        length_penalty: exponent of the length by which beams' scores are divided.
        early_stopping: stop a prompt's beam search as soon as `num_beams` answers ended.
        bad_words_ids: token sequences that must not be generated.
        eos_token_id: ids that end an answer.
        pad_token_id: fills rows that ended before others.
        stop: strings that end an answer; they are not part of it.
        n: answers per prompt.
        best_of: answers drawn per prompt, of which the `n` likeliest per token are returned.
        logprobs: alternatives reported with each token; None reports nothing.
        prompt_lookup_num_tokens: tokens that are guessed from the prompt and checked in one pass; None guesses nothing. The
            answer is the same, sooner where it quotes the prompt.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    bad_words_ids: Words = ()
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    prompt_lookup_num_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_contradictions(self)

    @property
    def candidates(self) -> int:
        """Answers to generate per prompt (beams not counted)."""
        return self.best_of or self.n

    def new_tokens(self, prompt_length: int, *, positions: int) -> int:
        """Tokens to generate at most after a prompt of `prompt_length`, with a model of so many `positions`.

        What was asked for is returned even where it does not fit; only a limit that nobody set gives way to the model's.

        Raises:
            OptionError: `max_length` leaves no room after the prompt.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return max(1, min(DEFAULT_NEW_TOKENS, positions - prompt_length))
        if self.max_length <= prompt_length:
            raise OptionError(
                f"max_length={self.max_length} leaves no room after a prompt of {prompt_length} tokens (images included); "
                "raise it or use max_new_tokens"
            )
        return self.max_length - prompt_length


DEFAULT_NEW_TOKENS = 512
"""Where neither the checkpoint nor the caller says; answers end by themselves long before."""

_FIELDS = {field.name: field for field in dataclasses.fields(SamplingParams)}
# Inert at these values: what the reference writes when an option is off.
_OFF: dict[str, tuple[Any, ...]] = {
    "top_k": (0,),
    "top_p": (1.0,),
    "typical_p": (1.0,),
    "no_repeat_ngram_size": (None,),
    "bad_words_ids": (None,),
    "stop": (None,),
    "eos_token_id": (None,),
    "prompt_lookup_num_tokens": (0,),
}


def sampling_params(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> SamplingParams:
    """Options of one call over the defaults of a checkpoint.

    Args:
        defaults: content of `generation_config.json`. Its sampling options apply when a call samples; they do not make it.
        options: what the caller asks for. None means: not given. A sampling option implies `do_sample`.

    Raises:
        OptionError: an option is unknown, out of range, or contradicts another; it is named.

    >>> sampling_params({"eos_token_id": 2}, {"temperature": 0.5}).do_sample
    True
    >>> sampling_params({}, {"temprature": 0.5})
    Traceback (most recent call last):
    idefics.errors.OptionError: unknown generation option 'temprature'; did you mean 'temperature'?
    """
    asked = {_ALIASES.get(name, name): value for name, value in options.items() if value is not None}
    for name in asked:
        if name not in _FIELDS:
            raise OptionError(_unknown(name))
    given = {_ALIASES.get(name, name): value for name, value in defaults.items()}
    kept = {name: value for name, value in given.items() if name in _FIELDS and value is not None}
    random = [name for name in _RANDOM if name in asked and asked[name] not in _OFF.get(name, ())]
    if random and asked.get("do_sample") is False:
        raise OptionError(f"{random[0]}={asked[random[0]]} contradicts do_sample=False; leave one of them out")
    beams = asked.get("num_beams", 1)
    if isinstance(beams, int) and beams > 1 and not random:
        asked.setdefault("do_sample", False)
    sample = asked.get("do_sample", bool(random) or kept.get("do_sample", False))
    if "max_new_tokens" in asked and "max_length" in asked:
        raise OptionError(
            f"max_new_tokens={asked['max_new_tokens']} and max_length={asked['max_length']} contradict each other; give one"
        )
    if "max_new_tokens" in asked or "max_length" in asked:
        kept.pop("max_length", None)
        kept.pop("max_new_tokens", None)
    if not sample:
        kept = {name: value for name, value in kept.items() if name not in _RANDOM}
    merged = {**kept, **asked, "do_sample": sample}
    merged = {name: value for name, value in merged.items() if value not in _OFF.get(name, ())}
    return SamplingParams(**{name: _normalised(name, value) for name, value in merged.items()})


def unknown_defaults(defaults: Mapping[str, Any]) -> list[str]:
    """Keys of a `generation_config.json` that would change the output and are not known here."""
    known = {*_FIELDS, *_ALIASES, *_BOOKKEEPING}
    off: tuple[Any, ...] = (None, False, 0, 1, "", [], {})  # what the reference writes when an option is off
    return sorted(name for name, value in defaults.items() if name not in known and (value is True or value not in off))


def _normalised(name: str, value: Any) -> Any:
    try:
        if name == "eos_token_id":
            return tuple(_flat(value))
        if name == "bad_words_ids":
            return tuple(tuple(word) for word in value)
        if name == "stop":
            return (value,) if isinstance(value, str) else tuple(value)
    except TypeError:
        raise OptionError(f"{name} cannot be {value!r}") from None
    return value


def _flat(value: Any) -> Iterator[int]:
    """Whole numbers in any nesting of lists.

    Raises:
        TypeError: anything else is among them.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, str):
        raise TypeError("a text is no token id")
    else:
        for item in value:
            yield from _flat(item)


def _unknown(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, [*_FIELDS, *_ALIASES], n=1)
    return f"unknown generation option {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def _check_ranges(params: SamplingParams) -> None:
    for name, value in dataclasses.asdict(params).items():
        kind = str(_FIELDS[name].type)
        if value is None:
            continue
        if "int" in kind and "tuple" not in kind and (isinstance(value, bool) or not isinstance(value, int)):
            raise OptionError(f"{name} must be a whole number, not {value!r}")
        if "float" in kind and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise OptionError(f"{name} must be a number, not {value!r}")
        if kind == "bool" and not isinstance(value, bool):
            raise OptionError(f"{name} must be true or false, not {value!r}")
    checks = (
        ("max_new_tokens", "at least 1", lambda v: v >= 1),
        ("max_length", "at least 1", lambda v: v >= 1),
        ("min_new_tokens", "at least 0", lambda v: v >= 0),
        ("temperature", "above 0 and finite (for greedy decoding use do_sample=False)", lambda v: 0 < v < math.inf),
        ("top_k", "at least 1", lambda v: v >= 1),
        ("top_p", "above 0 and at most 1", lambda v: 0 < v <= 1),
        ("typical_p", "above 0 and at most 1", lambda v: 0 < v <= 1),
        ("min_p", "from 0 to 1", lambda v: 0 <= v <= 1),
        ("repetition_penalty", "above 0", lambda v: v > 0),
        ("frequency_penalty", "from -2 to 2", lambda v: -2 <= v <= 2),
        ("presence_penalty", "from -2 to 2", lambda v: -2 <= v <= 2),
        ("no_repeat_ngram_size", "at least 0", lambda v: v >= 0),
        ("num_beams", "at least 1", lambda v: v >= 1),
        ("n", "at least 1", lambda v: v >= 1),
        ("best_of", "at least 1", lambda v: v >= 1),
        ("logprobs", "from 0 to 100", lambda v: 0 <= v <= 100),
        ("prompt_lookup_num_tokens", "at least 1", lambda v: v >= 1),
        ("stop", "non-empty strings", lambda v: all(isinstance(s, str) and s for s in v)),
        (
            "bad_words_ids",
            "non-empty sequences of token ids",
            lambda v: all(w and {*map(type, w)} == {int} for w in v),
        ),
    )
    for name, rule, holds in checks:
        value = getattr(params, name)
        if value is not None and not holds(value):
            raise OptionError(f"{name} must be {rule}, not {value!r}")


def _check_contradictions(params: SamplingParams) -> None:
    if params.max_new_tokens is not None and params.min_new_tokens > params.max_new_tokens:
        raise OptionError(f"min_new_tokens={params.min_new_tokens} is above max_new_tokens={params.max_new_tokens}")
    if params.num_beams > 1 and params.do_sample:
        raise OptionError(f"num_beams={params.num_beams} contradicts do_sample=True; beam search does not draw")
    if params.num_beams > 1 and params.best_of is not None:
        raise OptionError(f"num_beams={params.num_beams} contradicts best_of={params.best_of}; use n")
    if params.num_beams > 1 and params.logprobs is not None:
        raise OptionError(f"num_beams={params.num_beams} contradicts logprobs={params.logprobs}; beams report scores only")
    if params.num_beams > 1 and params.prompt_lookup_num_tokens is not None:
        lookup = params.prompt_lookup_num_tokens
        raise OptionError(f"num_beams={params.num_beams} contradicts prompt_lookup_num_tokens={lookup}; beams guess nothing")
    if params.num_beams > 1 and params.n > params.num_beams:
        raise OptionError(f"n={params.n} is above num_beams={params.num_beams}")
    if params.num_beams == 1 and not params.do_sample and params.candidates > 1:
        raise OptionError(f"{params.candidates} greedy answers would be the same; use do_sample=True or num_beams")
    if params.best_of is not None and params.best_of < params.n:
        raise OptionError(f"best_of={params.best_of} is below n={params.n}")
    for word in params.bad_words_ids:
        if len(word) == 1 and word[0] in params.eos_token_id and params.eos_token_id == word:
            raise OptionError(f"bad_words_ids bans the only eos_token_id {word[0]}; the answer could never end")
