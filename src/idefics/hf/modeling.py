"""`Idefics2ForConditionalGeneration`: the model with the reference's calls around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idefics import config as own
from idefics.engine.defaults import generation_defaults
from idefics.engine.engine import Engine
from idefics.engine.prefill import check_alignment, positions
from idefics.engine.request import Completion, StopCheck
from idefics.engine.sampling_params import SamplingParams, sampling_params, unknown_defaults
from idefics.errors import OptionError
from idefics.hf.configuration import Idefics2Config
from idefics.hf.hub import folder_of, one_of, refuse
from idefics.hf.outputs import CausalLMOutput, GenerateOutput
from idefics.hf.padded import token_inputs, unpad_images
from idefics.inputs import ModelInputs
from idefics.model.idefics2 import Idefics2
from idefics.model.layers.attention import Backend
from idefics.parallel.load import load_placed
from idefics.processor.detokenizer import TextStream
from idefics.processor.tokenizer import Tokenizer
from idefics.weights.byte_sizes import byte_size
from idefics.weights.dtype import torch_dtype as dtype_named
from idefics.weights.init import initialize
from idefics.weights.save import save_model

__all__ = ["Idefics2ForConditionalGeneration", "Streamer"]

IGNORED_LABEL = -100
_BACKENDS: dict[str | None, Backend] = {None: "sdpa", "sdpa": "sdpa", "flash_attention_2": "sdpa", "eager": "reference"}
_LATER = {
    "quantization_config": "quantised checkpoints are not read by this version",
    "load_in_4bit": "quantised loading is not part of this version",
    "load_in_8bit": "quantised loading is not part of this version",
}
_REFUSED = {
    "output_scores": "per-step scores of the whole vocabulary are not kept; use logprobs=k",
    "output_logits": "per-step scores of the whole vocabulary are not kept; use logprobs=k",
    "logits_processor": "custom processors are not called",
    "stopping_criteria": "use stop_strings or a streamer",
}


class Streamer(Protocol):
    """What the reference's streamers offer."""

    def put(self, value: Tensor) -> None:
        """Takes the prompt, then each token."""
        ...

    def end(self) -> None:
        """Told that the answer is complete."""
        ...


class Idefics2ForConditionalGeneration(nn.Module):
    """An Idefics2 with random weights; `from_pretrained` loads one.

    Args:
        config: sizes.
        attn_implementation: `"sdpa"`, `"eager"` (the plain reference) or `"flash_attention_2"`, which torch's fused
            attention provides.

    Attributes:
        model: the network (`idefics.model.idefics2.Idefics2`).
        generation_config: content of the checkpoint's `generation_config.json`.
    """

    def __init__(self, config: own.Idefics2Config, *, attn_implementation: str | None = None) -> None:
        super().__init__()
        model = Idefics2(config, backend=_backend(attn_implementation))
        initialize(model, seed=torch.initial_seed() % 2**31)
        self._adopt(model, {"eos_token_id": config.text_config.eos_token_id, "pad_token_id": config.text_config.pad_token_id})

    def _adopt(self, model: Idefics2, defaults: Mapping[str, Any]) -> None:
        model.config = Idefics2Config.of(model.config)
        self.model = model
        self.generation_config = dict(defaults)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: str | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | int | Mapping[str, Any] | torch.device | None = None,
        attn_implementation: str | None = None,
        _attn_implementation: str | None = None,
        **options: Any,
    ) -> Idefics2ForConditionalGeneration:
        """Loads a folder or Hub id.

        Args:
            pretrained_model_name_or_path: in the published layout.
            torch_dtype: of the weights; None or `"auto"` keeps the stored one.
            dtype: the newer name of `torch_dtype`.
            device_map: a device (a number is a GPU's), `"auto"`, or a mapping from parts to devices; None loads to the CPU.
            attn_implementation: see the class.
            _attn_implementation: the older name of it.
            options: `revision`, `cache_dir`, `token`, `local_files_only`.

        Raises:
            IdeficsError: see `idefics.errors`.
        """
        folder = folder_of(pretrained_model_name_or_path, options)
        off = [name for name in _LATER if options.get(name) in (None, False)]
        refuse("from_pretrained", {name: value for name, value in options.items() if name not in off}, later=_LATER)
        chosen = one_of("torch_dtype", dtype_named(torch_dtype), "dtype", dtype_named(dtype))
        attention = one_of("attn_implementation", attn_implementation, "_attn_implementation", _attn_implementation)
        place = f"cuda:{device_map}" if isinstance(device_map, int) else device_map
        place = str(place) if isinstance(place, torch.device) else place
        model = load_placed(
            folder,
            dtype=chosen,
            device="cpu" if place is None else None,
            device_map=place,
            backend=_backend(attention),
            progress=None,
        )
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._adopt(model, generation_defaults(folder, model.config))
        return self.eval()

    def save_pretrained(self, save_directory: str | Path, *, max_shard_size: int | str = 5_000_000_000) -> None:
        """Writes the published layout: weights, `config.json`, `generation_config.json`.

        Args:
            save_directory: made if missing.
            max_shard_size: bytes of weights per file at most, as a number or `"5GB"`.
        """
        save_model(self.model, Path(save_directory), max_shard_bytes=byte_size(max_shard_size, name="max_shard_size"))
        own.write_json(Path(save_directory) / "generation_config.json", self.generation_config)

    @property
    def config(self) -> Idefics2Config:
        """Sizes."""
        return Idefics2Config.of(self.model.config)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.text_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding table."""
        return self.model.text_model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.model.lm_head

    def get_image_features(self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None) -> Tensor:
        """Latents (images, latents, hidden) of padded images (B, N, C, H, W)."""
        return self.model.encode_images(unpad_images(pixel_values, pixel_attention_mask)[0])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits of every position, and the loss of the labels.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 for padding on either side.
            position_ids: (B, T); None counts the tokens that are not padding.
            pixel_values: (B, N, C, H, W), padded with zeros.
            pixel_attention_mask: (B, N, H, W).
            image_hidden_states: latents of the images instead of their pixels, as an earlier call returned them.
            labels: (B, T) ids to predict (shifted here); -100 and the image token are not counted, nor is padding.

        Raises:
            InputError: image tokens and images differ in number, row by row.
        """
        mask = token_inputs(input_ids, attention_mask)
        latents = image_hidden_states
        if latents is not None and pixel_values is not None:
            raise OptionError("pixel_values and image_hidden_states are the same images twice; give one")
        if latents is None:
            images, counts = ((), ()) if pixel_values is None else unpad_images(pixel_values, pixel_attention_mask)
            check_alignment(
                ModelInputs(input_ids_BT=input_ids, attention_mask_BT=mask, images_CHW=images, images_per_row=counts),
                config=self.config,
            )
            latents = self.model.encode_images(images) if images else None
        hidden = self.model(
            input_ids,
            positions_BT=positions(mask) if position_ids is None else position_ids,
            seen=latents,
            key_mask_BS=None if bool(mask.all()) else mask.bool(),
        )
        logits = self.model.logits(hidden)
        loss = None
        if labels is not None:
            targets = labels[:, 1:].clone()
            # A first token after left padding has nothing before it to be predicted from.
            padding = (mask[:, 1:] == 0) | (mask[:, :-1] == 0)
            targets[(targets == self.config.image_token_id) | padding] = IGNORED_LABEL
            loss = F.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), targets.flatten().to(logits.device), ignore_index=IGNORED_LABEL
            )
        return CausalLMOutput(loss=loss, logits=logits, image_hidden_states=latents)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        *,
        generation_config: Any = None,
        streamer: Streamer | None = None,
        tokenizer: Any = None,
        return_dict_in_generate: bool = False,
        **options: Any,
    ) -> Any:
        """Continues prompts.

        Args:
            input_ids: (B, T), padded on either side.
            attention_mask: (B, T).
            pixel_values: (B, N, C, H, W).
            pixel_attention_mask: (B, N, H, W).
            generation_config: a mapping, or an object with `to_dict`, over the checkpoint's.
            streamer: told the prompt and every token (one prompt, one answer).
            tokenizer: needed with `stop_strings`.
            return_dict_in_generate: return `GenerateOutput`.
            options: see `SamplingParams`. Sampling without `top_k` takes 50, as the reference does.

        Returns:
            (B * n, T + new) ids: prompts left-padded, answers filled with the pad token.

        Raises:
            InputError: inputs or options cannot be used.
        """
        refuse("generate", {name: value for name, value in options.items() if name in _REFUSED and value}, later=_REFUSED)
        options = {name: value for name, value in options.items() if name not in (*_REFUSED, "use_cache")}
        chosen = _mapping(generation_config)
        return_dict_in_generate |= bool(chosen.pop("return_dict_in_generate", False))
        unknown = {*unknown_defaults(chosen), *(name for name in _REFUSED if chosen.get(name))}
        refuse("generation_config", {name: chosen[name] for name in unknown}, later=_REFUSED)
        defaults = {**self.generation_config, **chosen}
        params = sampling_params(defaults, options)
        if params.do_sample and "top_k" not in options and "top_k" not in defaults:
            params = sampling_params(defaults, {**options, "do_sample": True, "top_k": 50})
        if params.stop and not isinstance(tokenizer, Tokenizer):
            raise OptionError("stop_strings needs tokenizer=processor.tokenizer: ids alone do not tell where a text stops")
        images, counts = ((), ()) if pixel_values is None else unpad_images(pixel_values, pixel_attention_mask)
        mask = token_inputs(input_ids, attention_mask)
        inputs = ModelInputs(input_ids_BT=input_ids, attention_mask_BT=mask, images_CHW=images, images_per_row=counts)
        rows = len(input_ids)
        stops = None if not params.stop else [_stop(params, tokenizer) for _ in range(rows * _answers(params))]
        if streamer is not None:
            completions = [[self._streamed(inputs, params, stops, streamer)]]
        else:
            completions = self.engine.generate(inputs, [params] * rows, stops)
        sequences = _sequences(input_ids, mask, completions, params)
        if not return_dict_in_generate:
            return sequences
        scores = torch.tensor([c.score for row in completions for c in row], device=input_ids.device)
        return GenerateOutput(sequences=sequences, sequences_scores=scores, completions=completions)

    @property
    def engine(self) -> Engine:
        """The engine on this model."""
        return Engine(self.model)

    def _streamed(
        self, inputs: ModelInputs, params: SamplingParams, stops: list[StopCheck] | None, streamer: Streamer
    ) -> Completion:
        if len(inputs.input_ids_BT) != 1 or _answers(params) != 1 or params.num_beams > 1:
            raise OptionError("a streamer takes one prompt and one answer; leave out num_beams and n, or the streamer")
        streamer.put(inputs.input_ids_BT.cpu())
        tokens = []
        for token in self.engine.stream(inputs, [params], stops):
            tokens.append(token)
            streamer.put(torch.tensor([token.id]))
        streamer.end()
        return Completion.of(tokens)


def _answers(params: SamplingParams) -> int:
    return 1 if params.num_beams > 1 else params.candidates


def _backend(attn_implementation: str | None) -> Backend:
    if attn_implementation not in _BACKENDS:
        raise OptionError(f"attn_implementation={attn_implementation!r} is not one of eager, sdpa, flash_attention_2")
    return _BACKENDS[attn_implementation]


def _mapping(generation_config: Any) -> dict[str, Any]:
    if generation_config is None:
        return {}
    # What differs from the reference's defaults, where the object can say: release 4 has some that are not None.
    told = getattr(generation_config, "to_diff_dict", None) or getattr(generation_config, "to_dict", None)
    found = generation_config if told is None else told()
    if not isinstance(found, Mapping):
        raise OptionError(f"generation_config must be a mapping, not {type(found).__name__}")
    return {name: value for name, value in found.items() if value is not None}


def _stop(params: SamplingParams, tokenizer: Any) -> StopCheck:
    if params.num_beams > 1:
        return lambda ids: any(stop in tokenizer.decode(ids, skip_special_tokens=True) for stop in params.stop)
    stream = TextStream(tokenizer, stop=params.stop)

    def check(ids: Any) -> bool:
        stream.push(ids[-1])
        return stream.stopped is not None

    return check


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
