"""What every model of this face can do: be made, loaded, saved and asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from idefics import config as own
from idefics.config.json_files import write_json
from idefics.engine.defaults import generation_defaults
from idefics.engine.engine import Engine
from idefics.errors import InputError, OptionError
from idefics.hf.configuration import Spelled
from idefics.hf.elsewhere import features_of_whole_model, refuse_attribute, refuse_reference_names
from idefics.hf.generation import Streamer, generate
from idefics.hf.generation_settings import GenerationSettings
from idefics.hf.hub import HUB, folder_of, left_over, one_of
from idefics.hf.kept_engine import KeptEngine
from idefics.hf.outputs import CausalLMOutput
from idefics.inputs import ModelInputs
from idefics.machine.byte_sizes import byte_size
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.attention import Backend
from idefics.parallel.load import load_placed
from idefics.weights.dtype import torch_dtype as dtype_named
from idefics.weights.families import family_of
from idefics.weights.init import initialize
from idefics.weights.load import load_config
from idefics.weights.save import save_model

__all__ = ["PretrainedModel", "output"]

_BACKENDS: dict[str | None, Backend] = {None: "auto", "sdpa": "sdpa", "flash_attention_2": "sdpa", "eager": "reference"}


class PretrainedModel(nn.Module, ABC):
    """A model with random weights; `from_pretrained` loads one.

    `generate` keeps its engine, so that a next call about the same images or with the same beginning computes only what is
    new. Whatever may change the weights or their place (`to`, `load_state_dict`, `train` and `eval`, a step of an optimizer,
    modules put in) makes the next call start anew, and `drop_engine` does so at any time. Kept are 1 GiB of keys and values,
    or what the largest call needed, 512 MiB of images and, on a GPU, recorded steps; in training mode nothing is.

    Args:
        config: sizes.
        attn_implementation: `"sdpa"`, `"eager"` (the plain reference) or `"flash_attention_2"`, which torch's fused
            attention provides.

    Attributes:
        model: the network (see `idefics.model.base`).
        generation_config: content of the checkpoint's `generation_config.json`, by attributes too; what is written to it
            holds for later calls of `generate` and is saved.
        config_class: of its configuration.
        image_inputs: names of the inputs that carry images.
        input_options: of `inputs`, of this family.
    """

    model: VisionLanguageModel
    config_class: ClassVar[type[Spelled]]
    image_inputs: ClassVar[tuple[str, ...]]
    input_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: own.Config, *, attn_implementation: str | None = None) -> None:
        super().__init__()
        self._kept = KeptEngine()
        spelled = self.config_class.of(config)
        self.model = family_of(spelled).model(spelled, backend=_backend(attn_implementation))
        self._guard()
        initialize(self.model, seed=torch.initial_seed() % 2**31)
        text = spelled.text_config
        self.generation_config = GenerationSettings(eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id)

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
    ) -> Self:
        """Loads a folder or Hub id.

        Args:
            pretrained_model_name_or_path: in the published layout.
            torch_dtype: of the weights; None or `"auto"` keeps the stored one, but bfloat16 for a family that overflows in it.
            dtype: the newer name of `torch_dtype`.
            device_map: a device (a number is a GPU's), `"auto"`, or a mapping from parts to devices; None loads to the CPU.
            attn_implementation: see the class.
            _attn_implementation: the older name of it.
            options: `revision`, `cache_dir`, `token`, `local_files_only`.

        Raises:
            ConfigError: the checkpoint is another family's.
            IdeficsError: see `idefics.errors`.
        """
        folder = folder_of(pretrained_model_name_or_path, options)
        left_over("from_pretrained", options, there=(*HUB, "torch_dtype", "dtype", "device_map", "attn_implementation"))
        chosen = one_of("torch_dtype", dtype_named(torch_dtype), "dtype", dtype_named(dtype))
        attention = one_of("attn_implementation", attn_implementation, "_attn_implementation", _attn_implementation)
        place = f"cuda:{device_map}" if isinstance(device_map, int) else device_map
        place = str(place) if isinstance(place, torch.device) else place
        cls.config_class.of(load_config(folder))
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._kept = KeptEngine()
        self.model = load_placed(
            folder,
            dtype=chosen,
            device="cpu" if place is None else None,
            device_map=place,
            backend=_backend(attention),
            progress=None,
        )
        self._guard()
        self.generation_config = GenerationSettings(generation_defaults(folder, self.model.config))
        return self.eval()

    def save_pretrained(self, save_directory: str | Path, *, max_shard_size: int | str = 5_000_000_000, **options: Any) -> None:
        """Writes the published layout: weights, `config.json`, `generation_config.json`.

        Args:
            save_directory: made if missing.
            max_shard_size: bytes of weights per file at most, as a number or `"5GB"`.
            options: of the reference, where they ask for nothing (`safe_serialization=True`, `push_to_hub=False`, ...).

        Raises:
            OptionError: an unknown option, or one that asks for something; nothing is written.
        """
        left_over("save_pretrained", options, there=("max_shard_size",))
        save_model(self.model, Path(save_directory), max_shard_bytes=byte_size(max_shard_size, name="max_shard_size"))
        write_json(Path(save_directory) / "generation_config.json", self.generation_config)

    @property
    def generation_config(self) -> GenerationSettings:
        """Settings of `generate` where a call names no others."""
        return self._generation

    @generation_config.setter
    def generation_config(self, given: Any) -> None:
        self._generation = GenerationSettings.of(given)

    @property
    def config(self) -> Spelled:
        """Sizes."""
        return self.config_class.of(self.model.config)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.device

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

    @property
    def engine(self) -> Engine:
        """The engine on this model as it is now."""
        return self._kept.on(self.model)

    def drop_engine(self) -> None:
        """Gives back what `generate` keeps from call to call.

        Needed only for memory, and after a few weights were written through `tensor.data`, which nothing counts: of such
        changes only those of many tensors are seen.
        """
        self._kept.drop()

    def __getattr__(self, name: str) -> Any:
        refuse_attribute(type(self).__name__, name)
        return super().__getattr__(name)

    def _guard(self) -> None:
        """Has the parts say what they are called by, where somebody calls them as the reference's."""
        for module in (self.model, *self.model.children()):
            module.register_forward_pre_hook(refuse_reference_names, with_kwargs=True)
        if hasattr(type(self), "get_image_features"):
            vars(self.model)["get_image_features"] = features_of_whole_model

    def train(self, mode: bool = True) -> Self:
        """As every module's; drops the engine, whose memory training can use."""
        self.drop_engine()
        super().train(mode)
        return self

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As every module's; drops the engine."""
        self.drop_engine()
        return super().load_state_dict(*args, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.drop_engine()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @abstractmethod
    def inputs(self, input_ids: Tensor, attention_mask: Tensor | None = None, **images: Any) -> ModelInputs:
        """The engine's inputs of the reference's; `images` are those named in `image_inputs`.

        Raises:
            InputError: shapes do not agree.
            OptionError: an image input of another name.
        """

    def _check_names(self, images: Mapping[str, Tensor | None]) -> None:
        unknown = {name: value for name, value in images.items() if name not in self.image_inputs}
        left_over(f"{type(self).__name__}.inputs", unknown, there=("input_ids", "attention_mask", *self.image_inputs))

    def _check_options(self, options: Mapping[str, Any]) -> None:
        there = ("input_ids", "attention_mask", "position_ids", *self.image_inputs, "labels", "use_cache", "return_dict")
        left_over(f"{type(self).__name__}.forward", options, there=there)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        generation_config: Any = None,
        streamer: Streamer | None = None,
        tokenizer: Any = None,
        return_dict_in_generate: bool = False,
        **options: Any,
    ) -> Any:
        """Continues prompts.

        Without `max_new_tokens`, and where the checkpoint names no limit, an answer has 512 tokens at most (20 in the
        reference). Tokens that are drawn without `seed` obey `torch.manual_seed`.

        Args:
            input_ids: (B, T), padded on either side.
            attention_mask: (B, T).
            generation_config: a mapping, or an object with `to_dict`, over the checkpoint's.
            streamer: told the prompt and every token (one prompt, one answer), and that it is over, even by an error.
            tokenizer: needed with `stop_strings`.
            return_dict_in_generate: return `GenerateOutput`.
            options: images, as `forward` takes them, and what `SamplingParams` has. Sampling without `top_k` takes 50,
                as the reference does.

        Returns:
            (B * n, T + new) ids: prompts left-padded, answers filled with the pad token.

        Raises:
            InputError: inputs or options cannot be used.
        """
        images = {name: options.pop(name) for name in (*self.image_inputs, *self.input_options) if name in options}
        try:
            return generate(
                partial(self._kept.for_call, self.model),
                self.inputs(input_ids, attention_mask, **images),
                self.generation_config,
                generation_config=generation_config,
                streamer=streamer,
                tokenizer=tokenizer,
                return_dict_in_generate=return_dict_in_generate,
                options=options,
            )
        except InputError:
            raise
        except BaseException:  # memory that ended is wanted back, and nobody knows where an interrupted pass has stopped
            self.drop_engine()
            raise


def output(
    *, loss: Tensor | None, logits: Tensor, image_hidden_states: Tensor | None, return_dict: bool | None
) -> CausalLMOutput | tuple[Tensor, ...]:
    """By name, or, if `return_dict` is False, a tuple of what there is."""
    out = CausalLMOutput(loss=loss, logits=logits, image_hidden_states=image_hidden_states)
    return out.to_tuple() if return_dict is False else out


def _backend(attn_implementation: str | None) -> Backend:
    if not isinstance(attn_implementation, str | None) or attn_implementation not in _BACKENDS:
        raise OptionError(f"attn_implementation={attn_implementation!r} is not one of eager, sdpa, flash_attention_2")
    return _BACKENDS[attn_implementation]
