"""What OpenAI's bodies ask for, in the server's own words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from idefics.server.errors import Invalid
from idefics.server.openai.schemas import ChatCompletionRequest, Completing, CompletionRequest, ResponseFormat
from idefics.server.prepare.grammars import Grammar, json_grammar, named_schema
from idefics.server.prepare.prompts import Prompt, prompt_of_markdown
from idefics.server.prepare.requests import Asked, Words
from idefics.server.service import Service

__all__ = ["COMPLETION_TOKENS", "asked_of_chat", "asked_of_completion", "copies_of"]

COMPLETION_TOKENS = 16
"""New tokens of `/v1/completions` where the body does not say: OpenAI's default."""
ANY_OBJECT: dict[str, Any] = {"type": "object"}


def asked_of_chat(body: ChatCompletionRequest, service: Service) -> Asked:
    """A chat completion.

    Raises:
        Invalid: an option is out of range or not offered; it is named.
        InputError: the messages are unusable.
    """
    choice = None if body.tool_choice in ("none", "auto") else body.tool_choice
    for name, given in (("tools", body.tools), ("tool_choice", choice)):
        _refuse(name, given, f"this model calls no tools; leave `{name}` out")
    _refuse("store", body.store, "nothing is stored; leave `store` out")
    if body.max_tokens is not None and body.max_completion_tokens is not None and body.max_tokens != body.max_completion_tokens:
        raise Invalid("`max_tokens` and `max_completion_tokens` contradict each other; give one", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise Invalid("`top_logprobs` needs `logprobs`: true", param="top_logprobs")
    prompt = service.preparer.chat(body.messages)
    new = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    options = _options(body, service, new=new)
    options["logprobs"] = _alternatives(body.top_logprobs, service, "top_logprobs")
    words = Words(prompt="messages", new_tokens="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens")
    return _asked(body, prompt, words, options, _grammar(body.response_format, service))


def asked_of_completion(body: CompletionRequest, service: Service) -> list[Asked]:
    """A completion per prompt.

    Raises:
        Invalid: an option is out of range or not offered; it is named.
        InputError: a prompt is unusable.
    """
    _refuse("suffix", body.suffix, "texts are continued at their end only; leave `suffix` out")
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not texts or len(texts) > service.limits.prompts:
        raise Invalid(f"`prompt` must be one text or from 1 to {service.limits.prompts}, not {len(texts)}", param="prompt")
    if not all(isinstance(text, str) and text for text in texts):
        raise Invalid("`prompt` must be texts that are not empty; token ids are not read", param="prompt")
    if body.best_of not in (None, 1) and body.stream:
        raise Invalid("`best_of` cannot be streamed", param="best_of")
    if body.echo and body.logprobs is not None:
        raise Invalid("`logprobs` of an echoed prompt are not offered; `/generate` has decoder_input_details", param="echo")
    new = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    options = _options(body, service, new=new, best_of=body.best_of)
    options["logprobs"] = _alternatives(body.logprobs, service, "logprobs")
    images, processor = service.limits.images, service.model.processor
    words = Words(prompt="prompt", new_tokens="max_tokens")
    prompts = [prompt_of_markdown(text, processor, images=images) for text in texts]
    return [replace(_asked(body, prompt, words, options, None), appended=True) for prompt in prompts]


def copies_of(body: Completing) -> int:
    """How many times each answer is given: where nothing is drawn, `n` answers would be the same, and one is computed."""
    return body.n or 1 if _greedy(body) else 1


def _asked(body: Completing, prompt: Prompt, words: Words, options: dict[str, Any], grammar: Grammar | None) -> Asked:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Asked(
        prompt=prompt,
        words=words,
        options=options,
        stop=stop,
        grammar=grammar,
        split=body.do_image_splitting,
        max_image_size=body.max_image_size,
    )


def _options(body: Completing, service: Service, *, new: int | None, best_of: int | None = None) -> dict[str, Any]:
    limits = service.limits
    _refuse("logit_bias", body.logit_bias, "`logit_bias` is not offered; leave it out")
    if new is not None and new < 1:
        raise Invalid(f"at least one new token must be asked for, not {new}", param="max_tokens")
    answers = {"n": body.n, "best_of": best_of}
    for name, value in answers.items():
        if value is not None and not 1 <= value <= limits.answers:
            raise Invalid(f"`{name}` must be from 1 to {limits.answers}, not {value}", param=name)
    _require("temperature", body.temperature, 0 <= (body.temperature or 0) <= 2, "from 0 to 2")
    _require("top_p", body.top_p, 0 <= (1 if body.top_p is None else body.top_p) <= 1, "from 0 to 1")
    if best_of is not None and best_of < (body.n or 1):
        raise Invalid(f"`best_of` must be at least `n` = {body.n}, not {best_of}", param="best_of")
    if body.stream_options is not None and not body.stream:
        raise Invalid("`stream_options` needs `stream`: true", param="stream_options")
    greedy = _greedy(body)
    options: dict[str, Any] = {
        "max_new_tokens": new,
        "do_sample": not greedy,
        "n": None if greedy else body.n,
        "best_of": None if greedy else best_of,
        "seed": None if greedy else body.seed,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "repetition_penalty": body.repetition_penalty,
    }
    if not greedy:
        # Theirs, not the checkpoint's: a client that leaves them out means 1.
        options |= {"temperature": 1.0 if body.temperature is None else body.temperature, "top_p": body.top_p or 1.0}
        options |= {"top_k": body.top_k, "min_p": body.min_p}
    return options


def _greedy(body: Completing) -> bool:
    return body.temperature == 0 or body.top_p == 0


def _alternatives(given: int | None, service: Service, name: str) -> int | None:
    if given is not None and not 0 <= given <= service.limits.top_tokens:
        raise Invalid(f"`{name}` must be from 0 to {service.limits.top_tokens}, not {given}", param=name)
    return given or None


def _grammar(form: ResponseFormat | None, service: Service) -> Grammar | None:
    characters = service.limits.grammar_characters
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return json_grammar(ANY_OBJECT if form.value is None else form.value, characters=characters)
    if form.type == "json" and form.value is not None:
        return json_grammar(form.value, characters=characters)
    if form.type in ("json_schema", "json"):
        named = form.json_schema if form.value is None else form.value
        return json_grammar(named_schema(named, param="response_format"), characters=characters)
    if form.type == "regex" and isinstance(form.value, str) and form.value:
        return Grammar("regex", form.value)
    raise Invalid(
        f"`response_format` of type {form.type[:40]!r} is not one of text, json_object, json_schema, regex (with a value)",
        param="response_format",
    )


def _refuse(name: str, given: Any, told: str) -> None:
    if given:
        raise Invalid(told, param=name)


def _require(name: str, given: Any, holds: bool, rule: str) -> None:
    if given is not None and not holds:
        raise Invalid(f"`{name}` must be {rule}, not {given}", param=name)
