"""Continues prompts: requests join and leave at every step, and share one cache.

    engine = Engine(model)
    number = engine.add(inputs, params)      # one prompt; any time, from any thread
    while engine.busy:
        for event in engine.step(): ...      # tokens, and answers that ended without one
    engine.cancel(number)

`stream` and `generate` do that for a batch of prompts, and may run beside each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import torch

from idefics.engine.attempt import attempt
from idefics.engine.beam import beam_search
from idefics.engine.blocks import BlockPool
from idefics.engine.eyes import ImageEncoder
from idefics.engine.history import LogitFilter
from idefics.engine.image_cache import ImageCache
from idefics.engine.intake import Making, Piece, State, answers_of, check_ids, room_after
from idefics.engine.limits import Limits
from idefics.engine.pacing import paced
from idefics.engine.precision import own_precision
from idefics.engine.prefill import LESS, Prefill
from idefics.engine.request import Completion, Ended, Event, FinishReason, StopCheck, Token
from idefics.engine.runner import Runner
from idefics.engine.sampling import Choice, choose
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.scheduler import Scheduler
from idefics.engine.scoring import score_continuations, score_prompt
from idefics.engine.state import EngineState
from idefics.engine.streams import Streams
from idefics.errors import IdeficsError, NumericsError, OptionError
from idefics.inputs import ModelInputs
from idefics.machine.memory import explain_out_of_memory
from idefics.model.base import VisionLanguageModel

__all__ = ["Engine"]


class Engine:
    """Generates with one model.

    Args:
        model: in eval mode, on the device(s) where it shall run. What was made with its weights is kept, images and
            beginnings of prompts: after a change of them make a new engine.
        limits: how much to take on at once.

    Attributes:
        lock: held while a pass is computed, or anything is taken in or out.
        faults: passes in a row of which nothing could be computed, for reasons that nobody foresaw: perhaps no request's own.
    """

    def __init__(self, model: VisionLanguageModel, limits: Limits | None = None) -> None:
        self.model = model
        self.limits = limits or Limits()
        self.lock = threading.RLock()
        self._eyes = ImageEncoder(model, ImageCache(self.limits.image_bytes))
        self._runner: Runner | None = None
        self._scheduler: Scheduler[State] | None = None
        self._answers: dict[int, list[Making]] = {}
        self._streams = Streams()
        self._unclaimed: list[Event] = []
        self._numbers = count()
        self.faults = 0

    @property
    def busy(self) -> bool:
        """Whether any answer is unfinished, or an event of one has not been handed out."""
        with self.lock:
            return bool(self._answers or self._unclaimed)

    def state(self) -> EngineState:
        """What it holds now; nothing is made for being looked at."""
        return EngineState() if self._scheduler is None else EngineState.of(self._scheduler, self._eyes.images)

    @property
    def scheduler(self) -> Scheduler[State]:
        """Who waits and runs; made, with the cache, when it is first needed."""
        if self._scheduler is not None:
            return self._scheduler
        with self.lock:
            if self._scheduler is None:
                with explain_out_of_memory("making room for keys and values", reduce="give cache_bytes"):
                    self._runner = Runner(self.model, self.limits, self._eyes)
                pool = BlockPool(self._runner.blocks, self.limits.block)
                self._scheduler = Scheduler(pool, tokens=self.limits.tokens, rows=self.limits.rows)
            return self._scheduler

    @property
    def runner(self) -> Runner:
        """The model with its cache."""
        assert self.scheduler is not None
        assert self._runner is not None
        return self._runner

    def add(
        self,
        inputs: ModelInputs,
        params: SamplingParams,
        *,
        stops: Sequence[StopCheck] | None = None,
        guides: Sequence[LogitFilter] | None = None,
        deadline: float | None = None,
        stream: int = 0,
        number: int | None = None,
    ) -> int:
        """Takes in one prompt; `step` works on it from now on.

        Args:
            inputs: one row, without padding.
            params: how to continue it; no beams.
            stops: one per answer, `params.candidates` of them.
            guides: likewise; what they forbid on top of `params` is not chosen.
            deadline: in seconds of `time.monotonic`; what is unfinished then ends with `"deadline"`.
            stream: which of a seed's streams of random numbers the first answer draws from.
            number: the caller's for it; who gives numbers gives one to each request, and no number twice. None counts.

        Returns:
            The request's number, which its events bear.

        Raises:
            InputError: prompt and images do not match, or they can never fit the model's positions or the cache.
            OptionError: an id to be banned does not exist, or beams are asked for.
        """
        if params.num_beams > 1:
            raise OptionError(f"num_beams = {params.num_beams}: beams are searched by generate, one prompt after the other")
        number = next(self._numbers) if number is None else number
        made = answers_of(
            self.model,
            inputs,
            params,
            number=number,
            held=self.scheduler.pool.blocks * self.limits.block,
            stops=stops,
            guides=guides,
            deadline=deadline,
            stream=stream,
        )
        answers = list(made)  # images are named here, so that a pass under way is not waited for
        with self.lock:
            self._answers[number] = answers
            for answer in answers:
                self.scheduler.add(answer)
        return number

    def cancel(self, number: int) -> list[Event]:
        """Ends a request whatever it is doing; nothing happens if it has ended already.

        Returns:
            One `Ended` for each answer that was unfinished.
        """
        with self.lock:
            unfinished = [a for a in self._answers.get(number, ()) if not a.done]
            return [self._end(answer, "cancelled") for answer in unfinished]

    def unfinished(self, number: int) -> bool:
        """Whether any answer of a request has not ended."""
        return number in self._answers

    def collected(self) -> list[Event]:
        """What a step that failed had collected; the next one does not tell it again."""
        events, self._unclaimed = self._unclaimed, []
        return events

    def keep(self, event: Event) -> None:
        """Leaves an event to the next step's caller, because it is none of one's own requests."""
        self._unclaimed.append(event)

    def step(self) -> list[Event]:
        """One pass: every running answer gets its next token, and prompts are read as far as the pass has room.

        Returns:
            What happened, in order of arrival. An error that concerns one request, our own mistakes included, ends that
            request and is in its `Ended`; the others go on. Should a step raise, what had happened is told by the next.
        """
        with self.lock, own_precision(), torch.inference_mode():
            try:
                for event in self._events():  # kept one by one, in case of a fault between two
                    self._unclaimed.append(event)
            except Exception:
                self.faults += 1
                raise
            events, self._unclaimed = self._unclaimed, []
            return events

    def _events(self) -> Iterator[Event]:
        """What happens in one pass."""
        yield from self._expire()
        for answer in self.scheduler.running:
            answer.drafts = answer.state.guesses(answer)
        slices = paced(self.scheduler.plan(), self.runner)
        self.runner.wipe(self.scheduler.pool.unclean())
        encoded = dict(zip(slices, attempt(self._encode, slices), strict=True))
        for piece, error in encoded.items():
            if error is not None and not piece.answer.done:
                yield from self._give_up(piece.answer, error)
        slices = [piece for piece in slices if not piece.answer.done]
        computed = dict(zip(slices, attempt(self._compute, slices), strict=True))
        yield from self._choose(computed)
        self._count([*(error for error in encoded.values() if error is not None), *computed.values()])

    def stream(
        self, inputs: ModelInputs, params: Sequence[SamplingParams], stops: Sequence[StopCheck] | None = None
    ) -> Iterator[Token]:
        """Tokens as they are chosen, step by step; within a step, in order of prompts and candidates.

        Those that are drawn without a seed take one from torch's global generator, here and now.

        Args:
            inputs: the prompts; padding on either side.
            params: one per prompt; beam search cannot be streamed.
            stops: one per answer (prompts in order, each `params.candidates` times).

        Raises:
            InputError: prompts and images do not match, or prompt and answer exceed the model's positions or the cache.
            OptionError: an id to be banned does not exist.
            NumericsError: NaN or infinite logits.
            OutOfMemory: the machine is too small for a request.
        """
        assert all(p.num_beams == 1 for p in params), "beams have no tokens before the end"
        return self._streams.stream(self, inputs, params, stops)

    def generate(
        self, inputs: ModelInputs, params: Sequence[SamplingParams], stops: Sequence[StopCheck] | None = None
    ) -> list[list[Completion]]:
        """Whole answers: `params[i].n` per prompt, best first where they compete.

        Args:
            inputs: the prompts; padding on either side.
            params: one per prompt, all with beams or all without.
            stops: one per answer, as of `stream`; of beams one per prompt.

        Raises:
            InputError, NumericsError: as `stream`.
        """
        if any(p.num_beams > 1 for p in params):
            assert all(p.num_beams > 1 for p in params), "one call searches with beams or without"
            return [self._beams(inputs.row(row), p, None if stops is None else stops[row]) for row, p in enumerate(params)]
        return self._streams.generate(self, inputs, params, stops)

    @torch.inference_mode()
    def _beams(self, prompt: ModelInputs, params: SamplingParams, stop: StopCheck | None) -> list[Completion]:
        check_ids(self.model, params)
        length = int(prompt.attention_mask_BT.sum())
        room, rows = room_after(self.model, params, length), [0] * params.num_beams
        with (
            own_precision(),
            explain_out_of_memory(f"searching {room} new tokens after {length} with {len(rows)} beams", reduce=LESS),
        ):
            with self.lock:  # for encoded images
                prefill = Prefill(self.model, prompt, rows=rows, rooms=[room], encoded=self._eyes.encoded)
            return beam_search(prefill, params, stop, room=room)

    def score(
        self, inputs: ModelInputs, continued: Sequence[Sequence[int]], *, document_end: int | None = None
    ) -> list[tuple[list[float], bool]]:
        """As `score_continuations`, with the images that the engine knows; others wait meanwhile."""
        with self.lock, own_precision(), explain_out_of_memory(f"scoring {len(continued)} continuation(s)", reduce=LESS):
            return score_continuations(self.model, inputs, continued, document_end=document_end, encoded=self._eyes.encoded)

    def score_prompt(self, inputs: ModelInputs) -> list[float]:
        """As the function of this name, with the images that the engine knows; others wait meanwhile."""
        with self.lock, own_precision(), explain_out_of_memory(f"scoring {inputs.input_ids_BT.shape[1]} tokens", reduce=LESS):
            return score_prompt(self.model, inputs, encoded=self._eyes.encoded)

    def _encode(self, slices: Sequence[Piece]) -> list[None]:
        with explain_out_of_memory("encoding a request's images", reduce=LESS):
            self.runner.eyes.encode([picture for piece in slices for picture in self.runner.needed(piece)])
        return [None] * len(slices)

    def _compute(self, slices: Sequence[Piece]) -> list[torch.Tensor]:
        tokens = sum(len(piece.ids) for piece in slices)
        with explain_out_of_memory(f"computing {tokens} tokens of {len(slices)} answer(s)", reduce=LESS):
            return self.runner.run(slices)

    def _count(self, results: Sequence[object]) -> None:
        """Counts a pass that came to its end by what became of its slices."""
        if results:
            unforeseen = (isinstance(each, Exception) and not isinstance(each, IdeficsError) for each in results)
            self.faults = self.faults + 1 if all(unforeseen) else 0

    def _choose(self, computed: Mapping[Piece, torch.Tensor | Exception]) -> Iterator[Event]:
        """Chooses the tokens of slices that are computed; requests for which either failed end."""
        read = [(piece, rows) for piece, rows in computed.items() if piece.chooses and not isinstance(rows, Exception)]
        first = attempt(choose, [piece.answer.state.choosing(piece.answer, rows[0]) for piece, rows in read])
        chosen = {piece: (rows, choice) for (piece, rows), choice in zip(read, first, strict=True)}
        for piece in computed:
            if piece not in chosen or isinstance(chosen[piece][1], Exception):
                self.scheduler.pool.doubt(piece.written(self.scheduler.pool.size))
        for piece in sorted(computed, key=lambda piece: piece.answer.arrival):
            result = computed[piece]
            if piece.answer.done:
                continue
            if isinstance(result, Exception):
                yield from self._fail(piece.answer, result)
            elif piece in chosen:
                yield from self._chosen(piece, *chosen[piece])
            else:
                self.scheduler.advance(piece)

    def _chosen(self, piece: Piece, logits_RV: torch.Tensor, choice: Choice | Exception) -> list[Event]:
        """Appends the token chosen after the newest one, and as many drafts as are what would be chosen anyway."""
        answer = piece.answer
        events: list[Event] = []
        accepted = 0
        while True:
            if isinstance(choice, Exception):
                return events + self._fail(answer, choice)
            answer.say(choice.token)
            try:
                finish = answer.state.finish(answer)
            except Exception as error:  # of a stop check that somebody handed over
                return events + self._fail(answer, error)
            events.append(
                Token(
                    row=answer.request,
                    candidate=answer.candidate,
                    id=choice.token,
                    logprob=choice.logprob,
                    top=choice.top,
                    finish=finish,
                    planned=answer.planned,
                )
            )
            right = accepted < piece.drafts and choice.token == piece.ids[len(piece.ids) - piece.drafts + accepted]
            if finish is not None or not right:
                break
            accepted += 1
            (choice,) = attempt(choose, [answer.state.choosing(answer, logits_RV[accepted])])
        self.scheduler.advance(piece, accepted=accepted)
        self.scheduler.prove(piece, accepted=accepted)
        if finish is not None:
            self._forget(answer)
        return events

    def _expire(self) -> list[Event]:
        now = time.monotonic()
        late = [
            answer
            for answers in list(self._answers.values())
            for answer in answers
            if not answer.done and answer.state.deadline is not None and answer.state.deadline <= now
        ]
        return [self._end(answer, "deadline") for answer in late]

    def _fail(self, answer: Making, error: Exception) -> list[Event]:
        """Ends all answers of a request that failed while its tokens were computed or chosen."""
        held = {block for a in self._answers.get(answer.request, ()) if not a.done for block in a.blocks}
        # They may hold what is no number, also those that others share: pieces of a prompt are found before its end is
        # read. Whoever shares them began alike and fares alike; whoever takes them, once they are free, gets them wiped.
        self.scheduler.pool.doubt(held)
        if isinstance(error, NumericsError):
            self.scheduler.pool.forget(held)
        return self._give_up(answer, error)

    def _give_up(self, answer: Making, error: Exception) -> list[Event]:
        """Ends all of a request's answers."""
        return [self._end(a, "error", error) for a in self._answers.get(answer.request, ()) if not a.done]

    def _end(self, answer: Making, finish: FinishReason, error: Exception | None = None) -> Ended:
        self._forget(answer)
        return Ended(row=answer.request, candidate=answer.candidate, finish=finish, error=error)

    def _forget(self, answer: Making) -> None:
        self.scheduler.remove(answer)
        if all(a.done for a in self._answers[answer.request]):
            del self._answers[answer.request]
        if not self._answers:
            self.runner.rest()
