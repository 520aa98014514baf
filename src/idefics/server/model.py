"""The model that is served: what routes need to know of it, and its engine with what metrics want to count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from idefics.config import Config
from idefics.engine.history import LogitFilter
from idefics.engine.request import Event, StopCheck
from idefics.engine.sampling_params import SamplingParams
from idefics.engine.state import EngineState
from idefics.inputs import ModelInputs
from idefics.linears.packing import is_packed, stays_in_caches
from idefics.machine.cpus import usable_cpus
from idefics.machine.dtypes import dtype_name
from idefics.model.base import VisionLanguageModel
from idefics.processor.base import Processor

if TYPE_CHECKING:
    from idefics.api import Idefics

__all__ = ["EngineLike", "ServedModel", "spare_a_core"]


def spare_a_core(model: VisionLanguageModel) -> None:
    """Leaves one core to the server where a small model computes on the CPU (docs/serving.md has the numbers).

    Its products are over so soon that a thread which waits for a core holds up the others.
    """
    if not is_packed(model) and stays_in_caches(model) and model.device.type == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), max(1, usable_cpus() - 1)))


class EngineLike(Protocol):
    """What the server needs of an engine; tests put another in its place. All is called in one thread."""

    faults: int

    @property
    def busy(self) -> bool:
        """Whether any answer is unfinished."""
        ...

    def add(
        self,
        inputs: ModelInputs,
        params: SamplingParams,
        *,
        stops: Sequence[StopCheck] | None = None,
        guides: Sequence[LogitFilter] | None = None,
        deadline: float | None = None,
        number: int | None = None,
    ) -> int:
        """Takes in a prompt, under a number that no other has, and returns it."""
        ...

    def step(self) -> list[Event]:
        """One pass."""
        ...

    def cancel(self, number: int) -> list[Event]:
        """Ends a request."""
        ...

    def state(self) -> EngineState:
        """What it holds now."""
        ...

    def score_prompt(self, inputs: ModelInputs) -> list[float]:
        """Log-probability of each token of a prompt but the first."""
        ...


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the routes know of the model.

    Attributes:
        name: as it is told to clients.
        config: its sizes.
        processor: texts and images to inputs.
        defaults: content of the checkpoint's `generation_config.json`, and what the server adds.
        positions: tokens of prompt and answer together at most.
        longest_image: edge in pixels that the model was made for.
        dtype: of the weights, such as `"bfloat16"`.
        device: kind of device, such as `"cpu"`.
    """

    name: str
    config: Config
    processor: Processor
    defaults: Mapping[str, Any]
    positions: int
    longest_image: int
    dtype: str
    device: str

    @classmethod
    def of(cls, loaded: Idefics, *, speculate: int | None = None) -> ServedModel:
        """The facts of a loaded model.

        Args:
            loaded: the model.
            speculate: tokens that are guessed from the text so far and checked in one pass, for every answer
                (`SamplingParams.prompt_lookup_num_tokens`); 0 guesses nothing, None follows the checkpoint.
        """
        config = loaded.model.config
        return cls(
            name=loaded.name,
            config=config,
            processor=loaded.processor,
            defaults=loaded.defaults | ({} if speculate is None else {"prompt_lookup_num_tokens": speculate}),
            positions=config.text_config.max_position_embeddings,
            longest_image=config.vision_config.image_size,
            dtype=dtype_name(loaded.model.dtype),
            device=loaded.model.device.type,
        )
