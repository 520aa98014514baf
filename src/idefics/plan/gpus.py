"""What each of several GPUs will hold of a model and of a request, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idefics.config import Config
from idefics.machine.dtypes import dtype_named
from idefics.plan.request import MemoryPlan

__all__ = ["Share", "make_shares"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one GPU holds.

    Attributes:
        first: name of its first part, in the order of the computation; `last` of its last.
        size: of the GPU, in bytes like all that follow.
        weights: of its parts.
        kv_cache: of its decoder layers and gated blocks.
        activations: at the widest moment of its parts: of the tower's where images are encoded, of the prompt's in layers.
    """

    first: str
    last: str
    size: int
    weights: int
    kv_cache: int
    activations: int

    @property
    def free(self) -> int:
        """Bytes left at the peak; below 0 those that are missing."""
        return self.size - self.weights - self.kv_cache - self.activations

    @property
    def fits(self) -> bool:
        """Whether the GPU holds it all."""
        return self.free >= 0


def make_shares(config: Config, gpus: Sequence[int], memory: MemoryPlan) -> tuple[Share, ...]:
    """How `device_map="auto"` would cut the model over GPUs: consecutive pieces that fill all of them alike.

    Args:
        config: of the model.
        gpus: bytes of each.
        memory: of the request, from `make_plan`.

    Raises:
        OutOfMemory: the weights do not fit; with all the numbers.
    """
    from idefics.parallel.device_map import plan_devices, unit_bytes, usable

    dtype = dtype_named(memory.precision.dtype)
    devices = [(f"cuda:{index}", usable(size, devices=len(gpus))) for index, size in enumerate(gpus)]
    placed = plan_devices(config, devices, dtype=dtype)
    sizes = unit_bytes(config, dtype)
    text_cache, layers = memory.kv_cache - memory.image_cache, config.text_config.num_hidden_layers
    shares = []
    for index, size in enumerate(gpus):
        units = [unit for unit in sizes if placed[unit].index == index]
        own_layers = sum(unit.startswith("text_model.layers.") for unit in units)
        own_blocks = sum(unit.startswith("text_model.gated_cross_attn_layers.") for unit in units)
        sees = any(not unit.startswith(("text_model.", "lm_head")) for unit in units)
        shares.append(
            Share(
                first=units[0] if units else "nothing",
                last=units[-1] if units else "nothing",
                size=size,
                weights=sum(sizes[unit] for unit in units),
                kv_cache=text_cache * own_layers // layers + memory.image_cache * own_blocks // max(1, config.cross_layers),
                activations=max(memory.vision if sees else 0, memory.prompt if own_layers else 0),
            )
        )
    return tuple(shares)
