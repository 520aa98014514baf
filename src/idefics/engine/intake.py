"""What becomes of a prompt when it is taken in: checked, cut to its tokens, told apart from others by what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from idefics.engine.eyes import Source, pictures
from idefics.engine.history import LogitFilter
from idefics.engine.limits import check_room
from idefics.engine.request import FinishReason, StopCheck
from idefics.engine.sampling import Choosing, Sampler
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.sequences import AnswerInMaking, Slice
from idefics.engine.speculative import Lookup
from idefics.errors import OptionError
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

__all__ = ["Making", "Piece", "State", "answers_of", "check_ids", "room_after", "unpadded"]


@dataclass(frozen=True, eq=False)
class State:
    """What the engine knows of an answer beside its tokens.

    Attributes:
        params: how it is continued.
        source: what its tokens draw on.
        sampler: chooses its tokens.
        stop: says whether a text ends here; None for no stop strings.
        deadline: in seconds of `time.monotonic`, or None.
        lookup: guesses its next tokens; None guesses nothing.
    """

    params: SamplingParams
    source: Source
    sampler: Sampler
    stop: StopCheck | None
    deadline: float | None
    lookup: Lookup | None

    def guesses(self, answer: Making) -> list[int]:
        """What may follow the newest token, if only that is left to compute: no more ids than the answer has room for."""
        count, room = self.params.prompt_lookup_num_tokens, answer.most - len(answer.ids) - 1
        if self.lookup is None or not count or not answer.decoding or room <= 0:
            return []
        return self.lookup.after(answer.ids, min(count, room))

    def finish(self, answer: Making) -> FinishReason | None:
        """Why the answer ends with its newest token, or None."""
        if answer.ids[-1] in self.params.eos_token_id:
            return "eos"
        if self.stop is not None and self.stop(answer.said):
            return "stop"
        return "length" if len(answer.ids) >= answer.most else None

    def choosing(self, answer: Making, logits_V: Tensor) -> Choosing:
        """What chooses the answer's next token, after these logits."""
        return self.sampler, logits_V, answer.said


Making = AnswerInMaking[State]
"""An answer as the engine makes it."""

Piece = Slice[State]
"""What one pass computes of one."""


def answers_of(
    model: VisionLanguageModel,
    inputs: ModelInputs,
    params: SamplingParams,
    *,
    number: int,
    held: int,
    stops: Sequence[StopCheck] | None,
    guides: Sequence[LogitFilter] | None,
    deadline: float | None,
    stream: int,
) -> Iterator[Making]:
    """The answers that are to be made to one prompt, `params.candidates` of them, which share what they can.

    Args:
        model: that will make them.
        inputs: one row, without padding.
        params: how to continue it.
        number: of the request.
        held: tokens that the cache holds in all.
        stops: one per answer.
        guides: likewise.
        deadline: of all.
        stream: of random numbers, of the first answer.

    Raises:
        InputError: prompt and images do not match, or they can never fit the model's positions or the cache.
        OptionError: an id to be banned does not exist.
    """
    model.check(inputs)
    check_ids(model, params)
    ids = inputs.input_ids_BT[0].tolist()
    most = len(ids) + room_after(model, params, len(ids), held=held)
    shown, drawn = pictures(inputs), model.sources(inputs)[0].tolist()
    digests = [shown[place // model.sources_per_image].digest if place >= 0 else None for place in drawn]
    source = Source(shown, drawn, drawn[-1] if model.sources_remain else -1)
    leader = None
    for candidate in range(params.candidates):
        answer: Making = AnswerInMaking(
            request=number,
            candidate=candidate,
            ids=list(ids),
            prompt=len(ids),
            drawn=digests,
            drawn_after=digests[-1] if model.sources_remain else None,
            leader=leader,
            most=most,
            state=State(
                params,
                source,
                Sampler(params, ids, stream=stream + candidate, guide=None if guides is None else guides[candidate]),
                None if stops is None else stops[candidate],
                deadline,
                Lookup() if params.prompt_lookup_num_tokens else None,
            ),
        )
        leader = leader or answer
        yield answer


def room_after(model: VisionLanguageModel, params: SamplingParams, prompt: int, *, held: int | None = None) -> int:
    """New tokens after a prompt of so many, at most; `held` as in `check_room`.

    Raises:
        InputError: prompt and answer do not fit.
    """
    positions = model.config.text_config.max_position_embeddings
    room = params.new_tokens(prompt, positions=positions if held is None else min(positions, held))
    check_room(model, prompt=prompt, new=room, held=held)
    return room


def check_ids(model: VisionLanguageModel, params: SamplingParams) -> None:
    """Refuses ids that would be banned and do not exist.

    Raises:
        OptionError: the id and the size of the vocabulary are named.
    """
    size = model.config.text_config.vocab_size
    banned = [("bad_words_ids", i) for word in params.bad_words_ids for i in word]
    banned += [("eos_token_id", i) for i in params.eos_token_id if params.min_new_tokens]
    for name, token_id in banned:
        if not 0 <= token_id < size:
            raise OptionError(f"{name} names {token_id}, which is outside the model's vocabulary of {size}")


def unpadded(inputs: ModelInputs) -> ModelInputs:
    """One row without its padding."""
    real_T = inputs.attention_mask_BT[0].bool()
    return replace(
        inputs,
        input_ids_BT=inputs.input_ids_BT[:, real_T],
        attention_mask_BT=inputs.attention_mask_BT[:, real_T],
        seen_BT=None if inputs.seen_BT is None else inputs.seen_BT[:, real_T],
    )
