"""OpenAI's API: chat completions, completions, models."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from idefics.server.errors import NoRoom, NotFound, ServerError, TooLong
from idefics.server.http.compute import asked_headers, computed_headers
from idefics.server.http.routes import is_brief, place_of, taking_route
from idefics.server.http.sse import STREAMED, EventStream, Json, guarded_events
from idefics.server.link.answers import Said
from idefics.server.openai.asking import asked_of_chat, asked_of_completion, copies_of
from idefics.server.openai.logprobs import Shown, ShownTokens, chat_logprobs, completion_logprobs
from idefics.server.openai.schemas import ChatCompletionRequest, Completing, CompletionRequest, OpenAIError
from idefics.server.prepare.requests import Asked
from idefics.server.service import Conversation, Place, Service, Written, served_error

__all__ = ["openai_error", "openai_router"]

_TYPES = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", None),
    405: ("invalid_request_error", None),
    413: ("invalid_request_error", "request_too_large"),
    422: ("invalid_request_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    504: ("timeout", "timeout"),
}
_FINISH = {"eos": "stop", "stop": "stop", "length": "length"}


def openai_error(error: ServerError) -> dict[str, Any]:
    """OpenAI's form of an error, with text-generation-inference's kind beside it for its clients."""
    kind, code = _TYPES.get(error.status, ("server_error", None))
    if isinstance(error, TooLong | NoRoom):
        code = "context_length_exceeded"
    told, param = str(error), error.param
    if param == "grammar":
        told, param = told.replace("grammar is not valid", "`response_format` is not valid", 1), "response_format"
    return {
        "error": {"message": told, "type": kind, "param": param, "code": code},
        "error_type": error.kind,
    }


def openai_router(service: Service) -> APIRouter:
    """The routes of one served model."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": OpenAIError, "description": told}
        for status, told in (("4XX", "Not valid, too much, or not computable"), ("5XX", "Stopping, or time is over"))
    }
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=errors, route_class=taking_route(service))
    created = int(time.time())
    card = {"id": service.model.name, "object": "model", "created": created, "owned_by": "idefics"}

    @router.get("/models", summary="The served model")
    async def models() -> Response:
        return Json({"object": "list", "data": [card]})

    @router.get("/models/{name:path}", summary="The served model by its name")
    async def model(name: str) -> Response:
        if name != service.model.name:
            raise NotFound(f"the model {name!r} does not exist; {service.model.name!r} is served", param="model")
        return Json(card)

    @router.post("/chat/completions", summary="Go on with a chat", responses=STREAMED)
    async def chat(body: ChatCompletionRequest, request: Request) -> Response:
        asked = await service.preparer.in_worker(lambda: [asked_of_chat(body, service)], brief=is_brief(request))
        role_once = "x-stainless-lang" in request.headers  # OpenAI's own clients, which add up what pieces bring
        return await _Chat(service, body, role_once=role_once).respond(asked, place_of(request))

    @router.post("/completions", summary="Go on with a text", responses=STREAMED)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        asked = await service.preparer.in_worker(lambda: asked_of_completion(body, service), brief=is_brief(request))
        return await _Completion(service, body).respond(asked, place_of(request))

    return router


class _Answering:
    """One request's way to a response, whatever its kind of completion."""

    objects: tuple[str, str]  # whole, and piece
    prefix: str

    def __init__(self, service: Service, body: Completing, *, logprobs: bool) -> None:
        self._service = service
        self._body = body
        self._logprobs = logprobs
        self._copies = copies_of(body)
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": service.model.name}
        self._print = {"system_fingerprint": f"idefics-{service.model.dtype}"}

    async def respond(self, asked: Sequence[Asked], place: Place) -> Response:
        return await (self._stream(asked, place) if self._body.stream else self._whole(asked, place))

    async def _whole(self, asked: Sequence[Asked], place: Place) -> Response:
        async def one(each: Asked) -> Conversation:
            async with self._service.conversation(each, place, streams=False) as conversation:
                await conversation.whole()
                return conversation

        tasks = [asyncio.ensure_future(one(each)) for each in asked]
        try:
            conversations = await asyncio.gather(*tasks)
        except BaseException as error:  # if one fails the others are not wanted, for its reason
            reason = error.args[0] if isinstance(error, asyncio.CancelledError) and error.args else error
            for task in tasks:
                task.cancel(reason)
            raise
        choices: list[dict[str, Any]] = []
        for conversation in conversations:
            params = conversation.prepared.params
            answers = conversation.written
            if params.best_of is not None:
                answers = sorted(answers, key=lambda answer: -answer.score)[: params.n]
            for answer in answers:
                choice = self._choice(conversation, answer)
                choices += [{"index": len(choices) + copy, **choice} for copy in range(self._copies)]
        usage = _usage(conversations, self._copies)
        headers = computed_headers(self._service.model, _characters(asked), conversations)
        whole = {**self._head, "object": self.objects[0], **self._print, "choices": choices, "usage": usage}
        return Json(whole, headers=headers)

    async def _stream(self, asked: Sequence[Asked], place: Place) -> Response:
        async with AsyncExitStack() as entering:  # what is wrong with one of them ends the others, and is why they end
            conversations = [
                await entering.enter_async_context(self._service.conversation(each, place, streams=True)) for each in asked
            ]
            stack = entering.pop_all()
        events = guarded_events(self._events(stack, conversations), openai_error, served_error)
        headers = asked_headers(self._service.model, _characters(asked))
        seconds = self._service.limits.send_seconds
        return EventStream(_done_last(events), send_seconds=seconds, stack=stack, headers=headers)

    async def _events(
        self, stack: AsyncExitStack, conversations: Sequence[Conversation]
    ) -> AsyncGenerator[dict[str, Any], None]:
        options = self._body.stream_options
        usage = options is not None and options.include_usage
        shell = {**self._head, "object": self.objects[1], **self._print}
        plain = {"usage": None} if usage else {}

        def copied(choice: dict[str, Any], answer: int) -> list[dict[str, Any]]:
            places = range(answer * self._copies, (answer + 1) * self._copies)
            return [{**shell, "choices": [{"index": index, **choice}], **plain} for index in places]

        async with stack:
            for row, conversation in enumerate(conversations):
                answers = conversation.prepared.params.candidates
                texts = [ShownTokens(self._service.model.processor.tokenizer) for _ in range(answers)]
                for candidate in range(answers):
                    for choice in self._opening(conversation):
                        for event in copied(choice, row * answers + candidate):
                            yield event
                async for said in conversation:
                    shown = texts[said.candidate].push(said) if self._logprobs else []
                    for choice in self._pieces(said, shown):
                        for event in copied(choice, row * answers + said.candidate):
                            yield event
            if usage:
                yield {**shell, "choices": [], "usage": _usage(conversations, self._copies)}

    def _shown(self, answer: Written) -> list[Shown]:
        tokens = ShownTokens(self._service.model.processor.tokenizer)
        return [shown for said in answer.tokens for shown in tokens.push(said)]

    def _choice(self, conversation: Conversation, answer: Written) -> dict[str, Any]:
        raise NotImplementedError

    def _opening(self, conversation: Conversation) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _pieces(self, said: Said, shown: Sequence[Shown]) -> list[dict[str, Any]]:
        raise NotImplementedError


class _Chat(_Answering):
    objects = ("chat.completion", "chat.completion.chunk")
    prefix = "chatcmpl"

    def __init__(self, service: Service, body: ChatCompletionRequest, *, role_once: bool) -> None:
        super().__init__(service, body, logprobs=bool(body.logprobs))
        # text-generation-inference tells it with every piece, and its clients insist.
        self._role = {} if role_once else {"role": "assistant"}

    def _choice(self, conversation: Conversation, answer: Written) -> dict[str, Any]:
        del conversation
        return {
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": chat_logprobs(self._shown(answer)) if self._logprobs else None,
            "finish_reason": _FINISH[answer.finish],
        }

    def _opening(self, conversation: Conversation) -> list[dict[str, Any]]:
        del conversation
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [{"delta": delta, "logprobs": None, "finish_reason": None}]

    def _pieces(self, said: Said, shown: Sequence[Shown]) -> list[dict[str, Any]]:
        def piece(text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
            return {"delta": {**self._role, "content": text}, "logprobs": logprobs, "finish_reason": finish}

        pieces: list[dict[str, Any]] = []
        if said.text or shown:
            pieces.append(piece(said.text, chat_logprobs(shown) if self._logprobs else None, None))
        if said.finish is not None:
            pieces.append(piece("", None, _FINISH[said.finish]))
        return pieces


class _Completion(_Answering):
    objects = ("text_completion", "text_completion")
    prefix = "cmpl"

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        super().__init__(service, body, logprobs=body.logprobs is not None)
        self._echo = bool(body.echo)
        self._alternatives = bool(body.logprobs)
        self._image_token = service.model.processor.image_token

    def _choice(self, conversation: Conversation, answer: Written) -> dict[str, Any]:
        return {
            "text": self._before(conversation) + answer.text,
            "logprobs": self._told(self._shown(answer)) if self._logprobs else None,
            "finish_reason": _FINISH[answer.finish],
        }

    def _opening(self, conversation: Conversation) -> list[dict[str, Any]]:
        before = self._before(conversation)
        return [{"text": before, "logprobs": None, "finish_reason": None}] if before else []

    def _pieces(self, said: Said, shown: Sequence[Shown]) -> list[dict[str, Any]]:
        if not said.text and not shown and said.finish is None:
            return []
        logprobs = self._told(shown) if self._logprobs else None
        finish = None if said.finish is None else _FINISH[said.finish]
        return [{"text": said.text, "logprobs": logprobs, "finish_reason": finish}]

    def _told(self, shown: Sequence[Shown]) -> dict[str, Any]:
        return completion_logprobs(shown, alternatives=self._alternatives)

    def _before(self, conversation: Conversation) -> str:
        return conversation.prepared.asked.prompt.written(self._image_token) if self._echo else ""


def _characters(asked: Sequence[Asked]) -> int:
    return sum(each.prompt.characters for each in asked)


def _usage(conversations: Sequence[Conversation], copies: int) -> dict[str, int]:
    prompt = sum(conversation.prepared.prompt_tokens for conversation in conversations)
    generated = copies * sum(conversation.generated for conversation in conversations)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


async def _done_last(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for event in events:
            yield event
        yield b"data: [DONE]\n\n"
    finally:
        await events.aclose()
