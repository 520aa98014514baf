"""The text-generation-inference API: a drop-in for its clients."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from idefics.server.errors import Invalid, ServerError
from idefics.server.http.compute import asked_headers, computed_headers
from idefics.server.http.routes import is_brief, place_of, taking_route
from idefics.server.http.sse import STREAMED, EventStream, Json, guarded_events
from idefics.server.link.answers import Said
from idefics.server.prepare.grammars import Grammar, json_grammar, named_schema
from idefics.server.prepare.prompts import prompt_of_markdown
from idefics.server.prepare.requests import Asked, Tokenized, Words
from idefics.server.service import Conversation, Service, Written, served_error
from idefics.server.tgi.info import info
from idefics.server.tgi.schemas import (
    ChatTokenizeRequest,
    Generate,
    GenerateOrStream,
    GrammarParameter,
    Parameters,
    TgiError,
    Tokenize,
)

__all__ = ["grammar_of", "tgi_error", "tgi_router"]

_FINISH = {"eos": "eos_token", "stop": "stop_sequence", "length": "length"}
_PREFIX = {"validation": "Input validation error: ", "generation": "Request failed during generation: "}


def tgi_error(error: ServerError) -> dict[str, Any]:
    """The original's form of an error."""
    return {"error": _PREFIX.get(error.kind, "") + str(error), "error_type": error.kind}


def tgi_router(service: Service) -> APIRouter:
    """The routes of one served model."""
    told = {
        400: "Too deep",
        413: "Too large",
        422: "Not valid",
        424: "Generation failed",
        429: "Overloaded",
        503: "Stopping",
        504: "Time is over",
    }
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": TgiError, "description": text} for status, text in told.items()
    }
    router = APIRouter(tags=["text-generation-inference"], responses=errors, route_class=taking_route(service))
    writer = _Writer(service)

    @router.post("/", summary="Answer whole, in a list, or token by token", responses=STREAMED)
    @router.post("/invocations", include_in_schema=False)  # what SageMaker calls it
    async def compatible(body: GenerateOrStream, request: Request) -> Response:
        if body.stream:
            return await writer.stream(body, request)
        return await writer.whole(body, request, listed=True)

    @router.post("/generate", summary="Answer whole")
    async def generate(body: Generate, request: Request) -> Response:
        return await writer.whole(body, request, listed=False)

    @router.post("/generate_stream", summary="Answer token by token", responses=STREAMED)
    async def generate_stream(body: Generate, request: Request) -> Response:
        return await writer.stream(body, request)

    @router.get("/info", summary="The served model and its limits")
    async def served() -> Response:
        return Json(info(service))

    @router.post("/tokenize", summary="A prompt's tokens, images included")
    async def tokenize(body: Tokenize) -> Response:
        given = body.parameters or Parameters()
        in_worker = service.preparer.in_worker
        prompt = await in_worker(lambda: prompt_of_markdown(body.inputs, service.model.processor, images=service.limits.images))
        asked = Asked(prompt=prompt, split=given.do_image_splitting, max_image_size=given.max_image_size)
        tokens = await service.preparer.tokens(asked)
        return await in_worker(lambda: Json(_listed(tokens)))

    @router.post("/chat_tokenize", summary="A chat's prompt and its tokens")
    async def chat_tokenize(body: ChatTokenizeRequest) -> Response:
        in_worker = service.preparer.in_worker
        prompt = await in_worker(lambda: service.preparer.chat(body.messages))
        asked = Asked(
            prompt=prompt, words=Words(prompt="messages"), split=body.do_image_splitting, max_image_size=body.max_image_size
        )
        tokens = await service.preparer.tokens(asked)
        text = prompt.written(service.model.processor.image_token)
        return await in_worker(lambda: Json({"tokenize_response": _listed(tokens), "templated_text": text}))

    return router


def grammar_of(given: GrammarParameter | None, *, characters: int) -> Grammar | None:
    """The grammar that a parameter names, of so many characters at most.

    Raises:
        Invalid: it is none, or longer.
    """
    if given is None:
        return None
    if given.type != "regex":
        schema = named_schema(given.value, param="grammar") if given.type == "json_schema" else given.value
        return json_grammar(schema, characters=characters)
    if not isinstance(given.value, str) or not given.value:
        raise Invalid("grammar is not valid: a regex is a text that is not empty", param="grammar")
    return Grammar("regex", given.value)


class _Writer:
    """Answers in the original's form."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tokenizer = service.model.processor.tokenizer
        self._special = set(self._tokenizer.all_special_ids)

    async def whole(self, body: Generate, request: Request, *, listed: bool) -> Response:
        given, service = body.parameters, self._service
        asked = await service.preparer.in_worker(lambda: self._asked(body, streams=False), brief=is_brief(request))
        async with service.conversation(asked, place_of(request), streams=False) as conversation:
            prefill = []
            if given.decoder_input_details:
                prefill = await self._prefill(conversation)
            answers = sorted(await conversation.whole(), key=lambda answer: -answer.score)
            headers = computed_headers(service.model, len(body.inputs), [conversation])
        if not _samples(given):
            answers *= given.best_of or 1  # all the same, as the original's are
        before = body.inputs if given.return_full_text else ""
        result: dict[str, Any] = {"generated_text": before + answers[0].text}
        if given.details or given.decoder_input_details:
            seed = conversation.prepared.params.seed
            result["details"] = self._details(answers[0], given, prefill, seed)
            if len(answers) > 1:
                result["details"]["best_of_sequences"] = [
                    {"generated_text": before + answer.text, **self._details(answer, given, prefill, seed)}
                    for answer in answers[1:]
                ]
        return Json([result] if listed else result, headers=headers)

    async def stream(self, body: Generate, request: Request) -> Response:
        service = self._service
        asked = await service.preparer.in_worker(lambda: self._asked(body, streams=True), brief=is_brief(request))
        stack = AsyncExitStack()
        # Entered before the response begins, so that what is wrong with a request has a status of its own.
        conversation = await stack.enter_async_context(service.conversation(asked, place_of(request), streams=True))
        events = guarded_events(self._events(stack, conversation, body), tgi_error, served_error)
        headers = asked_headers(service.model, len(body.inputs))
        return EventStream(events, send_seconds=service.limits.send_seconds, stack=stack, headers=headers)

    async def _events(
        self, stack: AsyncExitStack, conversation: Conversation, body: Generate
    ) -> AsyncGenerator[dict[str, Any], None]:
        given = body.parameters
        async with stack:
            async for said in conversation:
                written = conversation.written[0]
                shown: dict[str, Any] = {"index": len(written.tokens), "token": self._token(said)}
                if given.top_n_tokens:
                    shown["top_tokens"] = self._top(said)
                shown |= {"generated_text": None, "details": None}
                if said.finish is not None:
                    shown["generated_text"] = (body.inputs if given.return_full_text else "") + written.text
                    if given.details:
                        shown["details"] = {
                            "finish_reason": _FINISH[said.finish],
                            "generated_tokens": len(written.tokens),
                            "seed": conversation.prepared.params.seed,
                            "input_length": conversation.prepared.prompt_tokens,
                        }
                yield shown

    def _asked(self, body: Generate, *, streams: bool) -> Asked:
        given = body.parameters
        if not body.inputs:
            raise Invalid("`inputs` cannot be empty", param="inputs")
        _check(given, self._service, streams=streams)
        limits, samples = self._service.limits, _samples(given)
        # A drawn seed is reported, so that the answer can be had again.
        seed = given.seed if given.seed is not None else secrets.randbits(63)
        options = {
            "max_new_tokens": given.max_new_tokens,
            "max_length": self._service.model.positions if given.max_new_tokens is None else None,
            "do_sample": samples,
            "temperature": given.temperature if samples else None,
            "seed": seed if samples else None,
            "best_of": given.best_of if samples and given.best_of != 1 else None,
            "logprobs": given.top_n_tokens or None,
        }
        same = ("top_k", "top_p", "typical_p", "repetition_penalty", "frequency_penalty")
        options |= {name: getattr(given, name) for name in same}
        return Asked(
            prompt=prompt_of_markdown(body.inputs, self._service.model.processor, images=limits.images),
            options=options,
            stop=tuple(given.stop),
            keep_stop=True,
            appended=True,
            grammar=grammar_of(given.grammar, characters=limits.grammar_characters),
            truncate=given.truncate,
            split=given.do_image_splitting,
            max_image_size=given.max_image_size,
        )

    async def _prefill(self, conversation: Conversation) -> list[dict[str, Any]]:
        inputs = conversation.prepared.inputs
        logprobs = await self._service.bridge.score(inputs)
        ids = inputs.input_ids_BT[0].tolist()
        return [
            {"id": token, "text": self._text(token), "logprob": logprob}
            for token, logprob in zip(ids, [None, *logprobs], strict=True)
        ]

    def _details(self, answer: Written, given: Parameters, prefill: list[dict[str, Any]], seed: int | None) -> dict[str, Any]:
        details: dict[str, Any] = {
            "finish_reason": _FINISH[answer.finish],
            "generated_tokens": len(answer.tokens),
            "seed": seed,
            "prefill": prefill,
            "tokens": [self._token(said) for said in answer.tokens],
        }
        if given.top_n_tokens:
            details["top_tokens"] = [self._top(said) for said in answer.tokens]
        return details

    def _token(self, said: Said) -> dict[str, Any]:
        special = said.id in self._special
        text = self._text(said.id) if special else said.text
        return {"id": said.id, "text": text, "logprob": said.logprob, "special": special}

    def _top(self, said: Said) -> list[dict[str, Any]]:
        return [
            {"id": token, "text": self._text(token), "logprob": logprob, "special": token in self._special}
            for token, logprob in said.top
        ]

    def _text(self, token: int) -> str:
        """What a token shows by itself: a special one its name, a word its space."""
        name = self._tokenizer.backend.id_to_token(token)
        if name is None or token in self._special:
            return name or ""
        return name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")


def _asks_to_sample(given: Parameters) -> bool:
    """Whether the original's checks take a request for one that samples: by the names in it."""
    return given.do_sample or any(v is not None for v in (given.temperature, given.top_k, given.top_p, given.typical_p))


def _samples(given: Parameters) -> bool:
    """Whether the original's engine samples: by what the values change, and a temperature of 1 changes nothing."""
    return (
        given.do_sample
        or any(v is not None for v in (given.top_k, given.top_p, given.typical_p))
        or (given.temperature not in (None, 1.0))
    )


def _check(given: Parameters, service: Service, *, streams: bool) -> None:
    """Refuses what the original refuses, in its words.

    Raises:
        Invalid: a parameter is out of range, not offered, or contradicts another.
    """
    limits, positions = service.limits, service.model.positions
    best_of = 1 if given.best_of is None else given.best_of
    rules: tuple[tuple[str, bool, str], ...] = (
        ("best_of", 0 < best_of <= limits.answers, f"`best_of` must be > 0 and <= {limits.answers}. Given: {best_of}"),
        ("best_of", not streams or best_of == 1, "`best_of` != 1 is not supported when streaming tokens"),
        ("best_of", best_of == 1 or _asks_to_sample(given), "you must use sampling when `best_of` is > 1"),
        ("seed", best_of == 1 or given.seed is None, "`seed` must not be set when `best_of` > 1"),
        ("temperature", given.temperature is None or given.temperature > 0, "`temperature` must be strictly positive"),
        (
            "repetition_penalty",
            given.repetition_penalty is None or given.repetition_penalty > 0,
            "`repetition_penalty` must be strictly positive",
        ),
        (
            "frequency_penalty",
            given.frequency_penalty is None or -2 <= given.frequency_penalty <= 2,
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
        ),
        ("top_p", given.top_p is None or 0 < given.top_p < 1, "`top_p` must be > 0.0 and < 1.0"),
        ("top_k", given.top_k is None or given.top_k > 0, "`top_k` must be strictly positive"),
        ("typical_p", given.typical_p is None or 0 < given.typical_p < 1, "`typical_p` must be > 0.0 and < 1.0"),
        (
            "truncate",
            given.truncate is None or 0 < given.truncate < positions,
            f"`truncate` must be strictly positive and less than {positions}. Given: {given.truncate}",
        ),
        (
            "max_new_tokens",
            given.max_new_tokens is None or given.max_new_tokens > 0,
            "`max_new_tokens` must be strictly positive",
        ),
        (
            "top_n_tokens",
            given.top_n_tokens is None or 0 <= given.top_n_tokens <= limits.top_tokens,
            f"`top_n_tokens` must be >= 0 and <= {limits.top_tokens}. Given: {given.top_n_tokens}",
        ),
        (
            "decoder_input_details",
            not (streams and given.decoder_input_details),
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
        ("watermark", not given.watermark, "`watermark` is not supported; leave it out or false"),
        ("adapter_id", given.adapter_id is None, "`adapter_id` is not supported; serve the merged model instead"),
    )
    for name, holds, told in rules:
        if not holds:
            raise Invalid(told, param=name)


def _listed(tokens: Sequence[Tokenized]) -> list[dict[str, Any]]:
    return [vars(token) for token in tokens]
