"""Checks of a checkpoint's files against each other: tokenizer, processor, config, generation_config, chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from idefics.engine.sampling_params import sampling_params
from idefics.errors import OptionError, TemplateError
from idefics.processor.base import END_OF_UTTERANCE, FAKE_TOKEN
from idefics.selftest.checks import Check, inapplicable
from idefics.selftest.subject import Subject

__all__ = ["chat_template_renders", "ids_in_range", "parts_agree", "segments_start_anew", "special_tokens_round_trip"]


def ids_in_range(subject: Subject) -> Check:
    """Every id that a tokenizer can give or a file names has a row in the embedding."""
    size = subject.config.text_config.vocab_size
    tokenizer = subject.processor.tokenizer
    found = {f"tokenizer's {token!r}": token_id for token, token_id in tokenizer.get_vocab().items()}
    found |= {f"generation_config's {name}": value for name, value in _named_ids(subject.defaults)}
    wrong = {name: value for name, value in found.items() if not 0 <= value < size}
    advice = ""
    if any(END_OF_UTTERANCE in name for name in wrong):
        advice = "; a base model has no <end_of_utterance> row: remove that token from the tokenizer"
    return _list(
        "no id outside the embedding",
        [f"{name} = {value}" for name, value in sorted(wrong.items(), key=lambda item: -item[1])],
        holds=f"ids of {len(found)} tokens and options, embedding of {size} rows",
        advice=advice,
    )


def parts_agree(subject: Subject) -> Check:
    """Processor, config and generation_config mean the same tokens and numbers."""
    processor, config, faults = subject.processor, subject.config, []
    each = type(processor).tokens_of(config)
    if processor.image_token_id != config.image_token_id:
        faults.append(f"<image> is {processor.image_token_id} in the tokenizer, {config.image_token_id} in config.json")
    if processor.tokens_per_sub_image != each:
        faults.append(f"{processor.tokens_per_sub_image} tokens per image in the processor, {each} by config.json")
    try:
        params = sampling_params(subject.defaults, {})
        banned = {word[0] for word in params.bad_words_ids if len(word) == 1}
        if banned & set(params.eos_token_id):
            faults.append(f"generation_config bans its own end token(s) {sorted(banned & set(params.eos_token_id))}")
    except OptionError as error:
        faults.append(f"generation_config: {error}")
    return _list("processor, config and generation_config agree", faults, holds="image token, latents per image, options")


def special_tokens_round_trip(subject: Subject) -> Check:
    """Each special token is one id, alone and inside text, and comes back as itself or, where skipped, as nothing."""
    tokenizer, faults = subject.processor.tokenizer, []
    special = {i: str(tokenizer.backend.id_to_token(i)) for i in tokenizer.all_special_ids}
    for token_id, token in special.items():
        if tokenizer.encode(token, add_special_tokens=False) != [token_id]:
            faults.append(f"{token!r} is not one token")
        elif tokenizer.encode(f"a{token}b", add_special_tokens=False).count(token_id) != 1:
            faults.append(f"{token!r} is lost inside text")
        elif tokenizer.decode([token_id], skip_special_tokens=False).strip() != token.strip():
            faults.append(f"{token!r} decodes to {tokenizer.decode([token_id])!r}")
        elif tokenizer.decode([token_id], skip_special_tokens=True).strip():
            faults.append(f"{token!r} is not skipped")
    return _list("special tokens round trip", faults, holds=f"{len(special)} tokens")


def segments_start_anew(subject: Subject) -> Check:
    """Text after an image is tokenised like text at the beginning, with nothing in between: as in training."""
    tokenizer, faults = subject.processor.tokenizer, []
    for text in ("In this image", "7", " a"):
        after = tokenizer.encode(FAKE_TOKEN + text, add_special_tokens=False)
        alone = tokenizer.encode(text, add_special_tokens=False)
        if after != [subject.processor.fake_image_token_id, *alone]:
            faults.append(f"{text!r} is {alone} alone and {after[1:]} after an image")
    return _list("text after an image starts anew", faults, holds="ids of texts alone and behind the fake token")


def chat_template_renders(subject: Subject) -> Check:
    """Turns, images and texts in order, the beginning of an answer at the end, and the right number of image tokens."""
    processor, name = subject.processor, "chat template renders"
    if processor.chat_template is None:
        return inapplicable(name, "a base model has no chat template")
    image = {"type": "image"}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "Uno?"}, image]},
        {"role": "assistant", "content": [{"type": "text", "text": "Dos."}]},
        {"role": "user", "content": [{"type": "text", "text": "Tres?"}, image]},
    ]
    faults = []
    try:
        rendered = processor.apply_chat_template(messages)
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    except TemplateError as error:
        return _list(name, [str(error)], holds="three turns")
    parts = (processor.image_token, "Uno?", processor.image_token, "Dos.", "Tres?", processor.image_token)
    at = 0
    for part in parts:
        found = prompt.find(part, at)
        if found < 0:
            faults.append(f"{part} is missing or out of order")
            break
        at = found + len(part)
    if not prompt.startswith(rendered) or not prompt[len(rendered) :].strip():
        faults.append("add_generation_prompt adds no beginning of an answer")
    tokens = processor.tokenizer.encode(processor.expand(prompt)).count(processor.image_token_id)
    due = 3 * processor.tokens_per_sub_image * len(processor.image_processor.processed_sizes(200, 100))
    if tokens != due:
        faults.append(f"three images give {tokens} image tokens, not {due}")
    return _list(name, faults, holds="three turns with three images, and the beginning of an answer")


def _named_ids(defaults: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every token id that a `generation_config.json` names."""
    for name, value in defaults.items():
        if name.endswith(("_token_id", "_words_ids", "suppress_tokens")):
            yield from ((name, token_id) for token_id in _flat(value))


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, int):
        yield value


def _list(name: str, faults: list[str], *, holds: str, advice: str = "") -> Check:
    shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
    return Check(
        name=name,
        passed=not faults,
        measured=f"{len(faults)} faults",
        allowed="0",
        explanation=f"{shown}{advice}" if faults else holds,
    )
