"""What both APIs share: admission, the way through preparing and the engine, and what is counted and logged on it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from idefics.engine.sampling_params import sampling_params
from idefics.errors import IdeficsError
from idefics.server.errors import ClientGone, Closing, GenerationFailed, Overloaded, ServerError, as_told_error
from idefics.server.images.addresses import AddressRule
from idefics.server.images.decoders import Decoders
from idefics.server.images.source import ImageSource
from idefics.server.limits import ServerLimits
from idefics.server.link.answers import Said
from idefics.server.link.bridge import Bridge, EngineLink
from idefics.server.link.running import Running
from idefics.server.logs import event
from idefics.server.metrics import Metrics
from idefics.server.model import ServedModel
from idefics.server.prepare.compilers import Compilers
from idefics.server.prepare.requests import Asked, Prepared, Preparer

__all__ = ["Conversation", "Place", "Service", "Written", "served_error"]

log = logging.getLogger(__name__)


@dataclass
class Written:
    """One answer, whole or as far as it has come.

    Attributes:
        tokens: in order.
    """

    tokens: list[Said] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(said.text for said in self.tokens)

    @property
    def finish(self) -> str:
        """Why it ended."""
        assert self.tokens, "an answer without tokens"
        assert self.tokens[-1].finish is not None, "an unfinished answer"
        return self.tokens[-1].finish

    @property
    def score(self) -> float:
        """Mean log-probability of its tokens."""
        return sum(said.logprob for said in self.tokens) / len(self.tokens)


class Conversation:
    """One request on its way through the engine.

    Attributes:
        prepared: what was asked.
        arrived: `time.monotonic` when it came.
        written: its answers so far.
    """

    def __init__(self, prepared: Prepared, running: Running, arrived: float, metrics: Metrics) -> None:
        self.prepared = prepared
        self.arrived = arrived
        self.written = [Written() for _ in range(running.answers)]
        self.running = running
        self._metrics = metrics
        self._last: list[float | None] = [None] * running.answers
        self._started = False

    async def __aiter__(self) -> AsyncGenerator[Said, None]:
        """Yields what is said, and keeps it."""
        async for said in self.running:
            if not self._started:
                self._started = True
                self._metrics.observe("idefics_time_to_first_token_seconds", said.at - self.arrived)
            last = self._last[said.candidate]
            if last is not None:
                self._metrics.observe("idefics_time_between_tokens_seconds", said.at - last)
            self._last[said.candidate] = said.at
            self.written[said.candidate].tokens.append(said)
            if said.finish is not None:
                self._metrics.count("idefics_finished_answers", said.finish)
            yield said

    async def whole(self) -> list[Written]:
        """All answers, whole."""
        async for _ in self:
            pass
        return self.written

    @property
    def generated(self) -> int:
        """Tokens of all answers."""
        return sum(len(answer.tokens) for answer in self.written)

    def seconds(self) -> dict[str, float]:
        """Where the time went, so far: total, validation, queue, inference, time_per_token."""
        now = time.monotonic()
        planned = self.running.planned or self.running.added or now
        inference = now - planned
        return {
            "total": now - self.arrived,
            "validation": self.prepared.seconds,
            "queue": max(0.0, planned - self.running.began),
            "inference": inference,
            "time_per_token": inference / max(1, self.generated),
        }


class Place:
    """A request's place among those that the server takes on; free once nothing holds it any more.

    Attributes:
        arrived: `time.monotonic` when the request came.
    """

    def __init__(self, freed: Callable[[], None]) -> None:
        self.arrived = time.monotonic()
        self._freed = freed
        self._holds = 0

    def hold(self) -> Callable[[], None]:
        """Holds the place until what is returned is called, however often that is."""
        self._holds += 1
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._holds -= 1
                if self._holds == 0:
                    self._freed()

        return release


class Service:
    """One served model.

    Args:
        model: facts.
        engine: where the engine works.
        limits: of requests.
        rule: where images may be fetched from.
        decoders: where they are decoded; None: in processes of its own.
    """

    def __init__(
        self,
        model: ServedModel,
        engine: EngineLink,
        limits: ServerLimits,
        rule: AddressRule,
        decoders: Decoders | None = None,
    ) -> None:
        self.model = model
        self.limits = limits
        self.images = ImageSource(limits, rule)
        self._own_decoders = decoders is None
        self._decoders = decoders or Decoders(limits, lambda reason: self.metrics.count("idefics_decoders_killed", reason))
        self._compilers = Compilers(
            model.processor.tokenizer,
            sampling_params(model.defaults, {}).eos_token_id,
            limits,
            lambda reason: self.metrics.count("idefics_compilers_killed", reason),
        )
        self.preparer = Preparer(
            model.processor,
            model.defaults,
            positions=model.positions,
            longest_image=model.longest_image,
            limits=limits,
            images=self.images,
            decoders=self._decoders,
            compilers=self._compilers,
        )
        self.open = 0
        self.metrics = Metrics(lambda: self.bridge.state, lambda: self.open, lambda: self.bridge.healthy, lambda: self.prepares)
        self.bridge = Bridge(engine, model.processor.tokenizer, stuck_after=limits.stuck_after, stepped=self.metrics.stepped)

    def start(self) -> None:
        """Begins to work; called in the event loop."""
        self.bridge.start()
        event(log, "ready", model=self.model.name, device=self.model.device, dtype=self.model.dtype)

    def warm(self) -> None:
        """Begins the processes that requests need, which otherwise begin with the first."""
        self._decoders.warm()
        self._compilers.warm()

    @property
    def prepares(self) -> bool:
        """Whether the threads and processes that prepare requests come back from what they do."""
        return self.preparer.healthy and self._decoders.healthy and self._compilers.healthy

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        return self.bridge.healthy and not self.bridge.closing and self.prepares

    async def drain(self) -> None:
        """Takes no more requests, and lets those that run end within the limit; the rest fail."""
        event(log, "stopping", open_requests=self.open)
        await self.bridge.close(drain=self.limits.drain)

    async def close(self) -> None:
        """Stops, after `drain` if nobody called that before."""
        if not self.bridge.ended:
            await self.drain()
        elif self.bridge.alive:
            await self.bridge.close(drain=0)
        self.preparer.close()
        self._compilers.close()
        if self._own_decoders:
            self._decoders.close()
        await self.images.close()
        event(log, "stopped")

    @contextmanager
    def admitted(self) -> Iterator[Place]:
        """A place for a request, before any work is done for it; conversations hold it further, each until it has ended.

        Raises:
            Overloaded: as many requests are here as the server takes on.
            Closing: the server is stopping, or the engine is stuck or dead.
        """
        try:
            if self.bridge.closing:
                raise Closing("the server is stopping")
            if not self.bridge.healthy:
                raise Closing("the engine does not answer; try again later")
            if self.open >= self.limits.requests:
                raise Overloaded("Model is overloaded")
        except ServerError as error:
            self.metrics.count("tgi_request_count")
            self._failed(error, None)
            raise
        self.open += 1
        place = Place(self._leave)
        release = place.hold()
        try:
            yield place
        finally:
            release()

    @asynccontextmanager
    async def conversation(self, asked: Asked, place: Place, *, streams: bool) -> AsyncGenerator[Conversation, None]:
        """Gives a prompt to the engine, and sees to it that nothing of it is left there afterwards.

        Args:
            asked: the prompt and what is wanted of it.
            place: of its request.
            streams: whether its tokens are wanted one by one.

        Raises:
            Closing: the server is stopping, or the engine is stuck or dead.
            InputError: the request cannot be answered as it is.
        """
        self.metrics.count("tgi_request_count")
        conversation: Conversation | None = None
        try:
            prepared, running = await self._begun(asked, place, streams=streams)
            conversation = Conversation(prepared, running, place.arrived, self.metrics)
            try:
                yield conversation
            finally:
                running.cancel()
        except BaseException as error:  # cancelled, too: every end of a request is counted and logged, and goes on
            self._failed(error, conversation)
            raise
        self._answered(conversation)

    async def _begun(self, asked: Asked, place: Place, *, streams: bool) -> tuple[Prepared, Running]:
        release, deadline = place.hold(), place.arrived + self.limits.deadline
        try:
            prepared = await self.preparer.prepare(asked)
            self._observe(prepared)
            running = await self.bridge.ask(prepared, streams=streams, deadline=deadline, done=release)
        except BaseException:  # cancelled, too: the place is free again
            release()
            raise
        return prepared, running

    def _leave(self) -> None:
        self.open -= 1

    def _observe(self, prepared: Prepared) -> None:
        observe = self.metrics.observe
        observe("tgi_request_validation_duration", prepared.seconds)
        observe("tgi_request_input_length", prepared.prompt_tokens)
        observe("tgi_request_max_new_tokens", prepared.new_tokens)
        observe("idefics_request_images", len(prepared.asked.prompt.references))
        observe("idefics_request_image_bytes", prepared.image_bytes)
        self.metrics.count("idefics_image_bytes", by=prepared.image_bytes)

    def _answered(self, conversation: Conversation) -> None:
        observe, seconds = self.metrics.observe, conversation.seconds()
        self.metrics.count("tgi_request_success")
        observe("tgi_request_duration", seconds["total"])
        observe("tgi_request_queue_duration", seconds["queue"])
        observe("tgi_request_inference_duration", seconds["inference"])
        observe("tgi_request_mean_time_per_token_duration", seconds["time_per_token"])
        observe("tgi_request_generated_tokens", conversation.generated)
        event(
            log,
            "answered",
            prompt_tokens=conversation.prepared.prompt_tokens,
            images=len(conversation.prepared.asked.prompt.references),
            generated_tokens=conversation.generated,
            finish=[answer.finish for answer in conversation.written],
            seconds={name: round(value, 5) for name, value in seconds.items()},
        )

    def _failed(self, error: BaseException, conversation: Conversation | None) -> None:
        if not isinstance(error, Exception):  # cancelled, or closed from outside: by whom it may say
            reason = error.args[0] if error.args else None
            error = reason if isinstance(reason, IdeficsError) else ClientGone("nobody waits for the answer any more")
        failed = as_told_error(error)
        self.metrics.count("tgi_request_failure", failed.kind)
        generated = 0 if conversation is None else conversation.generated
        event(
            log,
            "not answered",
            level=_level(failed),
            error=str(failed)[:500],
            error_type=failed.kind,
            generated_tokens=generated,
        )


def served_error(error: BaseException) -> ServerError:
    """An error as clients are told; one that nobody meant to raise is logged."""
    if not isinstance(error, IdeficsError):
        log.error("an unexpected error", exc_info=error)
    return as_told_error(error)


def _level(error: ServerError) -> int:
    return logging.ERROR if error.status in (GenerationFailed.status, ServerError.status) else logging.INFO
