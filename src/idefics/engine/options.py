"""What one may ask of an answer: every option once, with what it accepts, for Python, the command and the server alike.

The checks of `SamplingParams`, the neutral values and the table in docs/options.md are read from here. Nothing here imports
torch. Names are those of the Hugging Face library where it has one, because that is what `generation_config.json` and
users speak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from idefics.config.rules import brief
from idefics.errors import NotOffered, OptionError
from idefics.processor.call_options import plain

__all__ = ["ABSENT", "ALIASES", "OPTIONS", "Absent", "Kind", "Option", "not_taken"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What an option's values are.

    Attributes:
        words: for people.
        read: the value as `SamplingParams` keeps it; TypeError where it is of another kind.
    """

    words: str
    read: Callable[[Any], Any]


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _listed(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping):
        raise TypeError
    return tuple(value)


def _texts(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) else _listed(value)


def _ids(value: Any) -> tuple[int, ...]:
    """Whole numbers in any nesting of lists, as some model cards write them."""

    def flat(value: Any) -> Iterator[int]:
        value = plain(value)
        if isinstance(value, int):
            yield _whole(value)
        else:
            for item in _listed(value):
                yield from flat(item)

    return tuple(flat(value))


def _words(value: Any) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(map(plain, _listed(plain(word)))) for word in _listed(value))


def _writable(text: str) -> bool:
    """Whether no half of a surrogate pair is in a text."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


WHOLE = Kind(words="a whole number", read=_whole)
NUMBER = Kind(words="a number", read=_number)
TRUTH = Kind(words="true or false", read=_truth)
IDS = Kind(words="a token id or several", read=_ids)
WORDS = Kind(words="sequences of token ids", read=_words)
TEXTS = Kind(words="a text or several", read=_texts)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        name: in Python, of `SamplingParams`.
        kind: of its values.
        rule: what holds for them, for people; empty where all do.
        holds: says whether it does.
        neutral: values that ask for nothing.
        greedy: further values that leave only the likeliest token, and so contradict nothing that never draws.
        draws: whether it means something only where tokens are drawn; any other value then asks to draw.
        aliases: other names in Python and in files.
        command: of `idefics generate`, or None.
        tgi: of `/generate`, or None.
        openai: of `/v1/completions` or `/v1/chat/completions`, or None.
    """

    name: str
    kind: Kind
    rule: str = ""
    holds: Callable[[Any], bool] = lambda _: True
    neutral: tuple[Any, ...] = ()
    greedy: tuple[Any, ...] = ()
    draws: bool = False
    aliases: tuple[str, ...] = ()
    command: str | None = None
    tgi: str | None = None
    openai: str | None = None

    def read(self, value: Any, *, name: str | None = None, kind_only: bool = False) -> Any:
        """A value as `SamplingParams` keeps it, checked.

        Args:
            value: of any kind.
            name: how errors call it, where it was given by an alias.
            kind_only: do not ask whether it is in range.

        Raises:
            OptionError: it is of another kind, or out of range.
        """
        try:
            read = self.kind.read(plain(value))
        except TypeError:
            raise OptionError(f"{name or self.name} must be {self.kind.words}, not {brief(value)}") from None
        if not kind_only and not self.holds(read):
            raise OptionError(f"{name or self.name} must be {self.rule}, not {brief(value)}")
        return read


def _least(bound: int) -> dict[str, Any]:
    return {"rule": f"at least {bound}", "holds": lambda value: value >= bound}


def _between(least: int, most: int) -> dict[str, Any]:
    return {"rule": f"from {least} to {most}", "holds": lambda value: least <= value <= most}


def _positive() -> dict[str, Any]:
    return {"rule": "above 0 and finite", "holds": lambda value: 0 < value < math.inf}


def _fraction() -> dict[str, Any]:
    return {"rule": "above 0 and at most 1", "holds": lambda value: 0 < value <= 1}


MOST_ANSWERS = 10_000
"""To one prompt, or beams of it: each holds memory before anything is computed, and a file may say a billion."""

OPTIONS: Mapping[str, Option] = {
    option.name: option
    for option in (
        Option(
            name="max_new_tokens",
            kind=WHOLE,
            **_least(1),
            command="--max-new-tokens",
            tgi="max_new_tokens",
            openai="max_tokens",
        ),
        Option(name="max_length", kind=WHOLE, **_least(1)),
        Option(name="min_new_tokens", kind=WHOLE, **_least(0), neutral=(0,), aliases=("min_tokens",)),
        Option(name="do_sample", kind=TRUTH, tgi="do_sample"),
        Option(
            name="temperature",
            kind=NUMBER,
            rule="at least 0 and finite (0 never draws)",
            holds=lambda value: 0 <= value < math.inf,
            greedy=(0, 1),
            draws=True,
            command="--temperature",
            tgi="temperature",
            openai="temperature",
        ),
        Option(
            name="top_k",
            kind=WHOLE,
            **_least(0),
            neutral=(0,),
            greedy=(1,),
            draws=True,
            command="--top-k",
            tgi="top_k",
            openai="top_k",
        ),
        Option(
            name="top_p",
            kind=NUMBER,
            **_between(0, 1),
            neutral=(1,),
            greedy=(0,),
            draws=True,
            command="--top-p",
            tgi="top_p",
            openai="top_p",
        ),
        Option(name="typical_p", kind=NUMBER, **_fraction(), neutral=(1,), draws=True, command="--typical-p", tgi="typical_p"),
        Option(
            name="min_p",
            kind=NUMBER,
            **_between(0, 1),
            neutral=(0,),
            greedy=(1,),
            draws=True,
            command="--min-p",
            openai="min_p",
        ),
        Option(name="seed", kind=WHOLE, command="--seed", tgi="seed", openai="seed"),
        Option(
            name="repetition_penalty",
            kind=NUMBER,
            **_positive(),
            neutral=(1,),
            command="--repetition-penalty",
            tgi="repetition_penalty",
            openai="repetition_penalty",
        ),
        Option(
            name="frequency_penalty",
            kind=NUMBER,
            **_between(-2, 2),
            neutral=(0,),
            command="--frequency-penalty",
            tgi="frequency_penalty",
            openai="frequency_penalty",
        ),
        Option(
            name="presence_penalty",
            kind=NUMBER,
            **_between(-2, 2),
            neutral=(0,),
            command="--presence-penalty",
            openai="presence_penalty",
        ),
        Option(name="no_repeat_ngram_size", kind=WHOLE, **_least(0), neutral=(0,), command="--no-repeat-ngram-size"),
        Option(name="num_beams", kind=WHOLE, **_between(1, MOST_ANSWERS), neutral=(1,), command="--num-beams"),
        Option(name="length_penalty", kind=NUMBER, rule="finite", holds=math.isfinite, neutral=(1,)),
        Option(name="early_stopping", kind=TRUTH, neutral=(False,)),
        Option(
            name="bad_words_ids",
            kind=WORDS,
            rule="non-empty sequences of token ids",
            holds=lambda value: all(word and {*map(type, word)} == {int} for word in value),
            neutral=((),),
        ),
        Option(name="eos_token_id", kind=IDS, neutral=((),)),
        Option(name="pad_token_id", kind=WHOLE),
        Option(
            name="stop",
            kind=TEXTS,
            rule="non-empty strings of whole characters",
            holds=lambda value: all(isinstance(text, str) and text and _writable(text) for text in value),
            neutral=((),),
            aliases=("stop_strings", "stop_sequences"),
            command="--stop",
            tgi="stop",
            openai="stop",
        ),
        Option(
            name="n",
            kind=WHOLE,
            **_between(1, MOST_ANSWERS),
            neutral=(1,),
            aliases=("num_return_sequences",),
            command="--n",
            openai="n",
        ),
        Option(
            name="best_of", kind=WHOLE, **_between(1, MOST_ANSWERS), neutral=(1,), draws=True, tgi="best_of", openai="best_of"
        ),
        Option(name="logprobs", kind=WHOLE, **_between(0, 100), tgi="top_n_tokens", openai="logprobs"),
        Option(name="prompt_lookup_num_tokens", kind=WHOLE, **_least(0), neutral=(0,), command="--prompt-lookup"),
    )
}
"""By name, in the order of `SamplingParams`."""

ALIASES: Mapping[str, str] = {alias: option.name for option in OPTIONS.values() for alias in option.aliases}


@dataclass(frozen=True)
class Absent:
    """An option of the reference's that is not offered.

    Attributes:
        neutral: values that ask for nothing and are accepted; None always is.
        instead: what does the like here, or what it means here.
    """

    neutral: tuple[Any, ...] = (False,)
    instead: str = ""


_SCORES = "per-step scores of the whole vocabulary are not kept; logprobs=k reports the k likeliest tokens"
_CALLED = "nothing is called between two tokens; there are stop, bad_words_ids and penalties"
_MOOT = (True, False)
ABSENT: Mapping[str, Absent] = {
    # No value of these changes an answer.
    "use_cache": Absent(_MOOT),
    "cache_implementation": Absent(("dynamic", "static", "hybrid", "offloaded", "offloaded_static", "quantized")),
    "synced_gpus": Absent(_MOOT),
    "low_memory": Absent(_MOOT),
    "disable_compile": Absent(_MOOT),
    "return_legacy_cache": Absent(_MOOT),
    # These do, but for these values.
    "output_scores": Absent(instead=_SCORES),
    "output_logits": Absent(instead=_SCORES),
    "output_attentions": Absent(instead="attention is never written out"),
    "output_hidden_states": Absent(instead="hidden states are not kept"),
    "return_dict_in_generate": Absent(instead="details=True tells everything about an answer"),
    "logits_processor": Absent(([],), instead=_CALLED),
    "stopping_criteria": Absent(([],), instead=_CALLED),
    "prefix_allowed_tokens_fn": Absent((), instead=_CALLED),
    "assistant_model": Absent((), instead="prompt_lookup_num_tokens guesses from the text so far"),
    "past_key_values": Absent((), instead="the engine finds beginnings that it knows by itself"),
    "interpolate_pos_encoding": Absent(instead="images of any size are placed by this model"),
    "inputs": Absent((), instead="input_ids takes the prompts"),
    "inputs_embeds": Absent(()),
    "negative_prompt_ids": Absent(()),
    "negative_prompt_attention_mask": Absent(()),
    "guidance_scale": Absent((1,)),
    "num_beam_groups": Absent((1,)),
    "diversity_penalty": Absent((0,)),
    "penalty_alpha": Absent((0,)),
    "dola_layers": Absent(()),
    "encoder_repetition_penalty": Absent((1,)),
    "encoder_no_repeat_ngram_size": Absent((0,)),
    "epsilon_cutoff": Absent((0,)),
    "eta_cutoff": Absent((0,)),
    "top_h": Absent(()),
    "min_length": Absent((0,), instead="min_new_tokens counts the answer alone"),
    "max_time": Absent(()),
    "exponential_decay_length_penalty": Absent(()),
    "suppress_tokens": Absent(([],), instead="bad_words_ids bans tokens"),
    "begin_suppress_tokens": Absent(([],)),
    "forced_bos_token_id": Absent(()),
    "forced_eos_token_id": Absent(()),
    "forced_decoder_ids": Absent(()),
    "force_words_ids": Absent(([],)),
    "constraints": Absent(([],)),
    "sequence_bias": Absent(({}, [])),
    "renormalize_logits": Absent(),
    "remove_invalid_values": Absent(instead="logits that are no numbers are an error"),
    "token_healing": Absent(),
    "watermarking_config": Absent(()),
    "custom_generate": Absent(()),
    "decoder_start_token_id": Absent(()),
}


def not_taken(name: str, value: Any) -> NoReturn:
    """Refuses an option of the reference's that is not offered, in one sentence for all of them, or an unknown one.

    Raises:
        NotOffered: it is the reference's.
        OptionError: it is unknown.
    """
    import difflib

    if name in ABSENT:
        raise NotOffered(f"{name}={value!r}", instead=ABSENT[name].instead)
    close = difflib.get_close_matches(name, [*OPTIONS, *ALIASES], n=1)
    there = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(OPTIONS)}"
    raise OptionError(f"unknown generation option {name!r}{there}")
