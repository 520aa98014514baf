"""How to continue a prompt: one frozen value per request, checked when it is made.

Nothing here imports torch. Names are those of the Hugging Face library where it has one, because that is what
`generation_config.json` and users speak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idefics.engine.options import ABSENT, ALIASES, OPTIONS, not_taken
from idefics.errors import OptionError
from idefics.processor.call_options import plain

__all__ = ["SamplingParams", "sampling_params", "unknown_defaults"]

Words = tuple[tuple[int, ...], ...]

# Keys of a `generation_config.json` that say nothing about how tokens are chosen.
_BOOKKEEPING = frozenset({"transformers_version", "bos_token_id", "_from_model_config"})


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    Attributes:
        max_new_tokens: tokens to generate at most.
        max_length: prompt and new tokens together at most; used where `max_new_tokens` is None.
        min_new_tokens: no end of sequence before that many.
        do_sample: draw at random; otherwise the likeliest token is taken.
        temperature: logits are divided by it. 0 never draws.
        top_k: only the k likeliest tokens.
        top_p: the likeliest tokens whose probabilities reach p (arXiv 1904.09751).
        typical_p: the most typical tokens whose probabilities reach p (arXiv 2202.00666).
        min_p: tokens at least this likely, relative to the likeliest (arXiv 2407.01082).
        seed: of this request's generator; None takes one from torch's global generator, so that `torch.manual_seed` is
            obeyed (a server takes a fresh one). Greedy decoding needs none, and ignores it.
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
        for field in dataclasses.fields(self):
            given, option = getattr(self, field.name), OPTIONS[field.name]
            value = field.default if given is None else option.read(given)
            if field.default is None and value in option.neutral:
                value = None
            object.__setattr__(self, field.name, value)  # as numpy and lists may have given it
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


def sampling_params(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> SamplingParams:
    """Options of one call over the defaults of a checkpoint.

    Args:
        defaults: content of `generation_config.json`. Its sampling options apply when a call samples; they do not make it.
        options: what the caller asks for. None means: not given, and a neutral value (`OPTIONS`) asks for nothing but to
            leave the checkpoint's. An option that draws asks for `do_sample`; `temperature=0` asks for the likeliest
            tokens, whatever stands beside it to draw from.

    Raises:
        OptionError: an option is unknown, out of range, or contradicts another; it is named.

    >>> sampling_params({"eos_token_id": 2}, {"temperature": 0.5}).do_sample
    True
    >>> sampling_params({}, {"temprature": 0.5})
    Traceback (most recent call last):
    idefics.errors.OptionError: unknown generation option 'temprature'; did you mean 'temperature'?
    """
    asked: dict[str, Any] = {}
    for given, value in options.items():
        name, value = ALIASES.get(given, given), plain(value)
        if value is None:
            continue
        if name in OPTIONS:
            asked[name] = OPTIONS[name].read(value)
        elif name not in ABSENT or not _among(value, ABSENT[name].neutral):
            not_taken(given, value)
    named = {ALIASES.get(name, name): value for name, value in defaults.items()}
    kept = {name: value for name, value in named.items() if name in OPTIONS and value is not None}
    sample = _draws(asked, kept)
    if "max_new_tokens" in asked and "max_length" in asked:
        raise OptionError(
            f"max_new_tokens={asked['max_new_tokens']} and max_length={asked['max_length']} contradict each other; give one"
        )
    if "max_new_tokens" in asked or "max_length" in asked:
        kept.pop("max_length", None)
        kept.pop("max_new_tokens", None)
    merged = {**kept, **asked, "do_sample": sample}
    if not sample:
        merged = {name: value for name, value in merged.items() if not OPTIONS[name].draws or name == "best_of" in asked}
    return SamplingParams(**merged)


def unknown_defaults(defaults: Mapping[str, Any]) -> list[str]:
    """Keys of a `generation_config.json` that would change the output and are not known here."""
    off: tuple[Any, ...] = (None, False, 0, 1, "", [], {})  # what the reference writes when an option is off

    def asks(name: str, value: Any) -> bool:
        if name in OPTIONS or name in ALIASES or name in _BOOKKEEPING or value is None:
            return False
        if name in ABSENT:
            return not _among(value, ABSENT[name].neutral)
        return value is True or not _among(value, off)

    return sorted(name for name, value in defaults.items() if asks(name, value))


def _draws(asked: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    """Whether tokens are drawn at random.

    Raises:
        OptionError: one option asks to draw, and another not to.
    """
    drawing = [name for name, value in asked.items() if OPTIONS[name].draws and value not in OPTIONS[name].neutral]
    wild = [name for name in drawing if asked[name] not in OPTIONS[name].greedy]
    said = asked.get("do_sample")
    if asked.get("temperature") == 0:
        if said:
            raise OptionError("temperature=0 contradicts do_sample=True; leave one of them out")
        return False
    if said is False and wild:
        raise OptionError(f"{wild[0]}={asked[wild[0]]} contradicts do_sample=False; leave one of them out")
    if said is not None:
        return bool(said)
    if wild or "temperature" in drawing:
        return True
    return asked.get("num_beams", 1) == 1 and bool(kept.get("do_sample", False))


def _among(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value of any kind is one of these; arrays compare to arrays."""
    return isinstance(value, bool | int | float | str | list | dict) and value in values


def _check_contradictions(params: SamplingParams) -> None:
    if params.max_new_tokens is not None and params.min_new_tokens > params.max_new_tokens:
        raise OptionError(f"min_new_tokens={params.min_new_tokens} is above max_new_tokens={params.max_new_tokens}")
    if params.do_sample and params.temperature == 0:
        raise OptionError("temperature=0 contradicts do_sample=True; leave one of them out")
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
