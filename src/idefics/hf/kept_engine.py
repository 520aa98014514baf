"""One engine per model from call to call, so that a second question about an image does not encode it again.

What an engine keeps, encoded images, keys and values, recorded steps, is right only as long as the model is what it was. This
face hands out a model that may be trained, moved and taken apart, so each call looks whether it has changed.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from idefics.engine.engine import Engine
from idefics.engine.limits import Limits, cache_blocks, token_bytes
from idefics.engine.sampling_params import SamplingParams
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel

__all__ = ["KeptEngine", "state_of"]

KEPT_BYTES = 2**30
"""Of keys and values there is room for at least; more only for a call that needs it. The rest of the memory is not ours."""

PROBES, PROBED = 64, 16
"""Tensors that are looked into, and elements of each."""

_OURS = ("idefics", "torch")


@dataclass(frozen=True)
class State:
    """What tells a model from what it was: its tensors, how often each was changed, and some of what is in them."""

    tensors: tuple[tuple[int, int, int], ...]
    content: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class Kept:
    """An engine, the model's state when it was made, and the tokens that it was made for."""

    engine: Engine
    state: State
    tokens: int


class KeptEngine:
    """Makes a model's engine when it is first needed, and again when the model has changed or a call needs more room.

    Copies keep nothing: an engine belongs to one model and holds locks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: Kept | None = None

    def on(self, model: VisionLanguageModel, *, tokens: int = 1) -> Engine:
        """The engine of a model as it is now.

        Args:
            model: one whose state cannot be told (`state_of`) gets an engine that is not kept.
            tokens: that there must be room for, as far as the memory allows.

        Raises:
            OptionError: there is not even memory for one block.
        """
        with self._lock:
            state, kept = state_of(model), self._kept
            if kept is not None and kept.engine.model is model and kept.state == state and tokens <= kept.tokens:
                return kept.engine
            self._kept = kept = None  # before there is another: its memory counts as free only once it is
            tokens = 1 << (tokens - 1).bit_length()  # or each call that is a little longer would start anew
            engine = Engine(model, _limits(model, tokens=tokens))
            if state is not None:
                self._kept = Kept(engine, state, tokens)
            return engine

    def for_call(self, model: VisionLanguageModel, inputs: ModelInputs, params: SamplingParams) -> Engine:
        """As `on`, with room for the answers to all prompts at once.

        Raises:
            OptionError: as `on`, or `max_length` leaves no room after a prompt.
        """
        if params.num_beams > 1:
            return self.on(model)  # beams have a cache of their own
        plain, positions = Limits(), model.config.text_config.max_position_embeddings
        prompt = max(inputs.attention_mask_BT.sum(1).tolist(), default=0)
        longest = min(prompt + params.new_tokens(prompt, positions=positions), positions)
        answers = min(len(inputs.input_ids_BT) * params.candidates, plain.rows)
        return self.on(model, tokens=answers * -(-longest // plain.block) * plain.block)

    def drop(self) -> None:
        """Keeps nothing any more; calls that are being answered end as they began."""
        with self._lock:
            self._kept = None

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptEngine, ()


def state_of(model: nn.Module) -> State | None:
    """What a model's answers depend on, to be compared with later; 0.9 ms for the 763 tensors of Idefics2-8B.

    Autograd counts changes of a tensor but not those through `tensor.data`, which adapters are merged and averages swapped
    with; these touch all of many tensors, so a few elements of a few tensors are compared besides.

    Returns:
        None where answers depend on more than tensors, or may: in training mode, and with modules or hooks that are neither
        torch's nor this package's, such as adapters with a switch.
    """
    modules: list[nn.Module] = [model]
    tensors: list[Tensor] = []
    known: set[type[nn.Module]] = set()
    for module in modules:
        if type(module) not in known:
            if not _ours(type(module)):
                return None
            known.add(type(module))
        own = module.__dict__  # at once: there are hundreds of modules
        if own["training"] or "forward" in own:
            return None
        if (own["_forward_hooks"] or own["_forward_pre_hooks"]) and not _only_our_hooks(module):
            return None
        for found, place in ((modules, own["_modules"]), (tensors, own["_parameters"]), (tensors, own["_buffers"])):
            if place:
                found += [value for value in place.values() if value is not None]
    if any(type(tensor) not in (nn.Parameter, Tensor) for tensor in tensors):
        return None
    with torch.inference_mode():
        versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        told = tuple([(id(t), version, t.data_ptr()) for t, version in zip(tensors, versions, strict=True)])
        return State(told, _content(tensors[:: max(1, len(tensors) // PROBES)]))


def _content(tensors: list[Tensor]) -> tuple[bytes, ...]:
    """A few elements of the middle of each, one transfer per device and dtype."""
    pieces: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.is_contiguous() and not tensor.is_meta:
            middle = tensor.numel() // 2
            pieces[tensor.device, tensor.dtype].append(tensor.view(-1)[middle : middle + PROBED])
    return tuple(torch.cat(alike).view(torch.uint8).cpu().numpy().tobytes() for alike in pieces.values())


def _ours(kind: Any) -> bool:
    return str(getattr(kind, "__module__", "")).partition(".")[0] in _OURS


def _only_our_hooks(module: nn.Module) -> bool:
    """Ours bring inputs to the device of a part (`parallel/device_map.py`), and compute nothing."""
    return all(_ours(hook) for hooks in (module._forward_hooks, module._forward_pre_hooks) for hook in hooks.values())


def _limits(model: VisionLanguageModel, *, tokens: int) -> Limits:
    """Room for so many tokens or `KEPT_BYTES` of them, as far as the memory allows."""
    plain = Limits()
    each = plain.block * max(token_bytes(model).values())
    wanted = max(tokens // plain.block, KEPT_BYTES // each, 1)
    return replace(plain, cache_bytes=each * min(wanted, cache_blocks(model, plain)))
