"""`generate` as the reference spells it: its options, streamers and sequences around the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from idefics.asking.text import stop_checks
from idefics.engine.engine import Engine
from idefics.engine.options import not_taken
from idefics.engine.request import Completion, StopCheck
from idefics.engine.sampling_params import SamplingParams, sampling_params, unknown_defaults
from idefics.errors import OptionError
from idefics.hf.generation_settings import settings_in
from idefics.hf.outputs import GenerateOutput
from idefics.inputs import ModelInputs
from idefics.processor.tokenizer import Tokenizer

__all__ = ["Streamer", "generate"]

REFERENCE_TOP_K = 50
"""What the reference draws from where nobody says."""


class Streamer(Protocol):
    """What the reference's streamers offer."""

    def put(self, value: Tensor) -> None:
        """Takes the prompt, then each token."""
        ...

    def end(self) -> None:
        """Told that nothing more will come: the answer is complete, or failed."""
        ...


def generate(
    engine_for: Callable[[ModelInputs, SamplingParams], Engine],
    inputs: ModelInputs,
    defaults: Mapping[str, Any],
    *,
    generation_config: Any,
    streamer: Streamer | None,
    tokenizer: Any,
    return_dict_in_generate: bool,
    options: Mapping[str, Any],
) -> Any:
    """Continues prompts.

    Args:
        engine_for: the engine for such prompts, each continued so.
        inputs: the prompts, padded on either side.
        defaults: the checkpoint's generation settings.
        generation_config: settings over those.
        streamer: see `PretrainedModel.generate`, as the rest.
        tokenizer: for stop strings.
        return_dict_in_generate: return `GenerateOutput`.
        options: of this call, over all settings.

    Raises:
        InputError: inputs or options cannot be used.
    """
    chosen = settings_in(generation_config)
    return_dict_in_generate |= bool(chosen.pop("return_dict_in_generate", False))
    params = _params(defaults, chosen, options, width=inputs.input_ids_BT.shape[1])
    if params.stop and not isinstance(tokenizer, Tokenizer):
        raise OptionError("stop_strings needs tokenizer=processor.tokenizer: ids alone do not tell where a text stops")
    rows = len(inputs.input_ids_BT)
    engine = engine_for(inputs, params)
    stops = stop_checks(tokenizer, params, prompts=rows)
    if streamer is not None:
        completions = [[_streamed(engine, inputs, params, stops, streamer)]]
    else:
        completions = engine.generate(inputs, [params] * rows, stops)
    sequences = _sequences(inputs.input_ids_BT, inputs.attention_mask_BT, completions, params)
    if not return_dict_in_generate:
        return sequences
    scores = torch.tensor([c.score for row in completions for c in row], device=sequences.device)
    return GenerateOutput(sequences=sequences, sequences_scores=scores, completions=completions)


def _params(
    defaults: Mapping[str, Any], chosen: Mapping[str, Any], options: Mapping[str, Any], *, width: int
) -> SamplingParams:
    """How to continue prompts padded to `width`: by this call's options, over its settings, over the checkpoint's."""
    for name in unknown_defaults(chosen):
        not_taken(name, chosen[name])
    settings = {**defaults, **chosen}
    params = sampling_params(settings, options)
    if params.do_sample and "top_k" not in options and "top_k" not in settings:
        params = replace(params, top_k=REFERENCE_TOP_K)
    if params.max_new_tokens is None and params.max_length is not None and params.max_length > width:
        # As the reference counts: padding too, so that all rows of a batch end together.
        params = replace(params, max_new_tokens=params.max_length - width, max_length=None)
    return params


def _streamed(
    engine: Engine, inputs: ModelInputs, params: SamplingParams, stops: list[StopCheck] | None, streamer: Streamer
) -> Completion:
    if len(inputs.input_ids_BT) != 1 or _answers(params) != 1 or params.num_beams > 1:
        raise OptionError("a streamer takes one prompt and one answer; leave out num_beams and n, or the streamer")
    tokens = []
    try:
        streamer.put(inputs.input_ids_BT.cpu())
        for token in engine.stream(inputs, [params], stops):
            tokens.append(token)
            streamer.put(torch.tensor([token.id]))
    finally:
        streamer.end()  # whoever reads it in another thread would wait forever otherwise
    return Completion.of(tokens)


def _answers(params: SamplingParams) -> int:
    return 1 if params.num_beams > 1 else params.candidates


def _sequences(input_ids: Tensor, mask: Tensor, completions: list[list[Completion]], params: SamplingParams) -> Tensor:
    pad = params.pad_token_id if params.pad_token_id is not None else params.eos_token_id[0] if params.eos_token_id else 0
    longest = max(len(c.token_ids) for row in completions for c in row)
    out = input_ids.new_full((sum(map(len, completions)), input_ids.shape[1] + longest), pad)
    index = 0
    for ids, valid, row in zip(input_ids, mask.bool(), completions, strict=True):
        for completion in row:
            length = int(valid.sum())
            out[index, input_ids.shape[1] - length : input_ids.shape[1]] = ids[valid]
            end = input_ids.shape[1] + len(completion.token_ids)
            out[index, input_ids.shape[1] : end] = torch.tensor(completion.token_ids, device=out.device)
            index += 1
    return out
