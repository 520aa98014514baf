"""OpenAI's API: chat completions, completions, models."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from idefics.server.errors import Invalid, ServerError
from idefics.server.openai_asking import asked_of_chat, asked_of_completion
from idefics.server.openai_logprobs import ChatLogprobs, CompletionLogprobs
from idefics.server.openai_schemas import ChatCompletionRequest, Completing, CompletionRequest, OpenAIError
from idefics.server.requests import Asked
from idefics.server.service import Conversation, Service, served_error
from idefics.server.sse import STREAMED, EventStream, Json, guarded_events, while_connected

__all__ = ["openai_error", "openai_router"]

_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    413: ("invalid_request_error", "request_too_large"),
    422: ("invalid_request_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    504: ("timeout", "timeout"),
}
_FINISH = {"eos": "stop", "stop": "stop", "length": "length"}


def openai_error(error: ServerError) -> dict[str, Any]:
    """OpenAI's form of an error, with text-generation-inference's kind beside it for its clients."""
    kind, code = _TYPES.get(error.status, ("server_error", None))
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": code},
        "error_type": error.kind,
    }


def openai_router(service: Service) -> APIRouter:
    """The routes of one served model."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": OpenAIError, "description": told}
        for status, told in (("4XX", "Not valid, too much, or not computable"), ("5XX", "Stopping, or time is over"))
    }
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=errors)
    created = int(time.time())
    card = {"id": service.model.name, "object": "model", "created": created, "owned_by": "idefics"}

    @router.get("/models", summary="The served model")
    async def models() -> Response:
        return Json({"object": "list", "data": [card]})

    @router.get("/models/{name:path}", summary="The served model by its name")
    async def model(name: str) -> Response:
        if name != service.model.name:
            error = Invalid(f"the model {name!r} does not exist; {service.model.name!r} is served", param="model")
            return Json({**openai_error(error), "error_type": "not_found"}, status_code=404)
        return Json(card)

    @router.post("/chat/completions", summary="Go on with a chat", responses=STREAMED)
    async def chat(body: ChatCompletionRequest, request: Request) -> Response:
        asked = await service.preparer.in_worker(lambda: [asked_of_chat(body, service)])
        return await _Chat(service, body).respond(asked, request)

    @router.post("/completions", summary="Go on with a text", responses=STREAMED)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        asked = await service.preparer.in_worker(lambda: asked_of_completion(body, service))
        return await _Completion(service, body).respond(asked, request)

    return router


class _Answering:
    """One request's way to a response, whatever its kind of completion."""

    objects: tuple[str, str]  # whole, and piece
    prefix: str

    def __init__(self, service: Service, body: Completing) -> None:
        self._service = service
        self._body = body
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": service.model.name}
        self._print = {"system_fingerprint": f"idefics-{service.model.dtype}"}

    async def respond(self, asked: Sequence[Asked], request: Request) -> Response:
        work: Coroutine[Any, Any, Response] = self._stream(asked) if self._body.stream else self._whole(asked)
        return await while_connected(request, work, deadline=self._service.limits.deadline + 5)

    async def _whole(self, asked: Sequence[Asked]) -> Response:
        async def one(each: Asked) -> Conversation:
            async with self._service.conversation(each, streams=False) as conversation:
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
        choices = []
        for place, conversation in enumerate(conversations):
            params = conversation.prepared.params
            answers = list(range(params.candidates))
            if params.best_of is not None:
                scores = [answer.score for answer in conversation.written]
                answers = sorted(answers, key=lambda i: -scores[i])[: params.n]
            for number, answer in enumerate(answers):
                choices.append(self._choice(conversation, answer, place * params.n + number))
        return Json(
            {**self._head, "object": self.objects[0], **self._print, "choices": choices, "usage": _usage(conversations)}
        )

    async def _stream(self, asked: Sequence[Asked]) -> Response:
        async with AsyncExitStack() as entering:  # what is wrong with one of them ends the others, and is why they end
            conversations = [
                await entering.enter_async_context(self._service.conversation(each, streams=True)) for each in asked
            ]
            stack = entering.pop_all()
        events = guarded_events(self._events(stack, conversations), openai_error, served_error)
        return EventStream(_done_last(events), send_seconds=self._service.limits.send_seconds, stack=stack)

    async def _events(
        self, stack: AsyncExitStack, conversations: Sequence[Conversation]
    ) -> AsyncGenerator[dict[str, Any], None]:
        options = self._body.stream_options
        usage = options is not None and options.include_usage
        shell = {**self._head, "object": self.objects[1], **self._print}
        plain = {"usage": None} if usage else {}
        async with stack:
            for place, conversation in enumerate(conversations):
                answers = conversation.prepared.params.candidates
                for number in range(answers):
                    for choice in self._opening(place * answers + number, conversation):
                        yield {**shell, "choices": [choice], **plain}
                async for said in conversation:
                    piece = self._piece(conversation, said.candidate, place * answers + said.candidate)
                    if piece is not None:
                        yield {**shell, "choices": [piece], **plain}
            if usage:
                yield {**shell, "choices": [], "usage": _usage(conversations)}

    def _choice(self, conversation: Conversation, answer: int, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def _opening(self, index: int, conversation: Conversation) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _piece(self, conversation: Conversation, answer: int, index: int) -> dict[str, Any] | None:
        raise NotImplementedError


class _Chat(_Answering):
    objects = ("chat.completion", "chat.completion.chunk")
    prefix = "chatcmpl"

    def __init__(self, service: Service, body: ChatCompletionRequest) -> None:
        super().__init__(service, body)
        self._logprobs = ChatLogprobs(service.model.processor.tokenizer) if body.logprobs else None

    def _choice(self, conversation: Conversation, answer: int, index: int) -> dict[str, Any]:
        written = conversation.written[answer]
        return {
            "index": index,
            "message": {"role": "assistant", "content": written.text, "refusal": None},
            "logprobs": None if self._logprobs is None else self._logprobs.of(written.tokens),
            "finish_reason": _FINISH[written.finish],
        }

    def _opening(self, index: int, conversation: Conversation) -> list[dict[str, Any]]:
        del conversation
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def _piece(self, conversation: Conversation, answer: int, index: int) -> dict[str, Any] | None:
        said = conversation.written[answer].tokens[-1]
        if not said.text and said.finish is None and self._logprobs is None:
            return None
        return {
            "index": index,
            "delta": {"content": said.text} if said.text else {},
            "logprobs": None if self._logprobs is None else self._logprobs.of([said]),
            "finish_reason": None if said.finish is None else _FINISH[said.finish],
        }


class _Completion(_Answering):
    objects = ("text_completion", "text_completion")
    prefix = "cmpl"

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        super().__init__(service, body)
        self._echo = bool(body.echo)
        self._logprobs = None if body.logprobs is None else CompletionLogprobs(service.model.processor.tokenizer)
        self._image_token = service.model.processor.image_token

    def _choice(self, conversation: Conversation, answer: int, index: int) -> dict[str, Any]:
        written = conversation.written[answer]
        return {
            "index": index,
            "text": self._before(conversation) + written.text,
            "logprobs": None if self._logprobs is None else self._logprobs.of(written.tokens),
            "finish_reason": _FINISH[written.finish],
        }

    def _opening(self, index: int, conversation: Conversation) -> list[dict[str, Any]]:
        before = self._before(conversation)
        return [{"index": index, "text": before, "logprobs": None, "finish_reason": None}] if before else []

    def _piece(self, conversation: Conversation, answer: int, index: int) -> dict[str, Any] | None:
        written = conversation.written[answer]
        said = written.tokens[-1]
        if not said.text and said.finish is None and self._logprobs is None:
            return None
        offset = sum(len(earlier.text) for earlier in written.tokens[:-1]) if self._logprobs is not None else 0
        return {
            "index": index,
            "text": said.text,
            "logprobs": None if self._logprobs is None else self._logprobs.of([said], offset=offset),
            "finish_reason": None if said.finish is None else _FINISH[said.finish],
        }

    def _before(self, conversation: Conversation) -> str:
        return conversation.prepared.asked.prompt.written(self._image_token) if self._echo else ""


def _usage(conversations: Sequence[Conversation]) -> dict[str, int]:
    prompt = sum(conversation.prepared.prompt_tokens for conversation in conversations)
    generated = sum(conversation.generated for conversation in conversations)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


async def _done_last(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for event in events:
            yield event
        yield b"data: [DONE]\n\n"
    finally:
        await events.aclose()
