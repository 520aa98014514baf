"""The parts of a config: frozen dataclasses with the published format's names and defaults, and how each is read.

A key that is neither a field nor known to be inert is refused: it may change the maths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from idefics.errors import ConfigError

__all__ = [
    "ABSENT_TEXT", "CLIP", "LLAMA", "PARTS", "FlamingoConfig", "PerceiverConfig", "TextConfig", "VisionConfig", "check_sizes",
    "mapping", "refuse_unknown", "section", "text_section",
]  # fmt: skip

PARTS = ("vision_config", "perceiver_config", "text_config")
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "quick_gelu")

# Keys that the reference writes and that change nothing in the maths of inference: bookkeeping, defaults for
# generation (which `generation_config.json` owns), initialisation of parts that a checkpoint overwrites.
INERT = frozenset(
    """
    _attn_implementation_autoset _flash_attn_2_enabled _name_or_path add_cross_attention architectures attn_implementation
    auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label image_seq_len
    initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype dtype torchscript
    transformers_version typical_p use_bfloat16 use_cache
    freeze_lm_head freeze_text_layers freeze_text_module_exceptions freeze_vision_layers freeze_vision_module_exceptions
    initializer_factor max_sequence_length unk_token_id vision_embed_dim vision_image_size vision_model_name
    """.split()  # noqa: SIM905 (names, not code)
)
# Keys that are honoured at one value only; any other value asks for maths that no published checkpoint has.
FIXED: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0, 0.0),
    "rope_scaling": (None,),
    "dropout": (0, 0.0),
    "cross_layer_activation_function": ("swiglu",),
    "use_resampler": (True,),
    "qk_layer_norms_perceiver": (False,),
    "layer_types": (None,),
}

# What the reference makes of keys that a file of the first generation leaves out.
LLAMA: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CLIP: dict[str, Any] = {
    "embed_dim": 768, "image_size": 224, "intermediate_size": 5120, "patch_size": 14, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
# What it makes of an Idefics2's file without `text_config`; in one that has it, Mistral's own defaults (`TextConfig`) hold.
ABSENT_TEXT = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "pad_token_id": 0}

Section = TypeVar("Section", bound="VisionConfig | PerceiverConfig | FlamingoConfig | TextConfig")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision tower, SigLIP or CLIP. SigLIP's `image_size` only sets the side of its table of positions."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def patches_per_side(self) -> int:
        """Side of the square position table."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """The resampler that pools any number of patches to `resampler_n_latents` tokens, in the text's hidden size."""

    hidden_act: str = "silu"
    resampler_n_latents: int = 64
    resampler_depth: int = 3
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    num_key_value_heads: int = 4
    hidden_size: int
    rms_norm_eps: float


@dataclass(frozen=True, kw_only=True)
class FlamingoConfig:
    """The first generation's resampler, in the tower's hidden size (arXiv 2204.14198); `resampler_n_latents` per image."""

    resampler_n_latents: int = 64
    resampler_depth: int = 6
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    qk_layer_norms_perceiver: bool = False


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder: Mistral or, with as many key-value heads as query heads and no window, LLaMA.

    `sliding_window` counts the keys a token sees, itself included; None sees all before it.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int | None = 4096
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None


def mapping(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a file as a dict of its own; empty where the file has none.

    Raises:
        ConfigError: it is no object.
    """
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be an object, not {value!r}")
    return dict(value)


def refuse_unknown(name: str, raw: Mapping[str, Any], known: set[str]) -> None:
    """Refuses keys that may change the maths: neither known nor inert, or honoured at one value and asked at another.

    Raises:
        ConfigError: the keys are named.
    """
    for key, value in raw.items():
        if key in FIXED and key not in known and value not in FIXED[key]:
            raise ConfigError(f"{name}.{key} = {value!r} is not supported; only {FIXED[key][0]!r} is")
    unknown = sorted(set(raw) - known - INERT - set(FIXED))
    if unknown:
        raise ConfigError(
            f"{name} has key(s) this version does not know and so cannot honour: {', '.join(unknown)}; "
            "remove them if they change nothing, or upgrade idefics"
        )


def section(cls: type[Section], name: str, raw: Mapping[str, Any]) -> Section:
    """A part as its dataclass.

    Args:
        cls: one of the dataclasses above.
        name: how errors call it.
        raw: its keys.

    Raises:
        ConfigError: a key is unknown, or a value is of the wrong kind or out of range.
    """
    known = {f.name: f for f in fields(cls)}
    refuse_unknown(name, raw, set(known))
    values = {key: raw[key] for key in known if key in raw}
    for key, value in values.items():
        expected = str(known[key].type)
        if value is None and "None" not in expected:
            raise ConfigError(f"{name}.{key} must not be null")
        if expected == "bool" and not isinstance(value, bool):
            raise ConfigError(f"{name}.{key} must be true or false, not {value!r}")
        if expected == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}.{key} must be a positive whole number, not {value!r}")
        if expected == "float" and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise ConfigError(f"{name}.{key} must be a positive number, not {value!r}")
    window = values.get("sliding_window")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigError(f"{name}.sliding_window must be a positive whole number or null, not {window!r}")
    activation = values.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{name}.hidden_act = {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    return cls(**values)


def text_section(raw: dict[str, Any], name: str) -> TextConfig:
    """A decoder's part, with the rotary base where its era put it and the head size where the file leaves it out.

    Raises:
        ConfigError: as `section`.
    """
    rope = raw.pop("rope_parameters", None)
    if rope is not None:
        if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
            raise ConfigError(f"{name}.rope_parameters = {rope!r}; only rope_type 'default' is supported")
        raw["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", TextConfig.rope_theta))
    if raw.get("head_dim") is None:
        hidden, heads = (
            raw.get("hidden_size", TextConfig.hidden_size),
            raw.get("num_attention_heads", TextConfig.num_attention_heads),
        )
        if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
            raise ConfigError(f"{name}.hidden_size = {hidden!r} is not a multiple of num_attention_heads = {heads!r}")
        raw["head_dim"] = hidden // heads
    return section(TextConfig, name, raw)


def check_sizes(vision: VisionConfig, text: TextConfig) -> None:
    """Refuses sizes that no tower or decoder can have.

    Raises:
        ConfigError: both numbers are named.
    """
    if vision.hidden_size % vision.num_attention_heads:
        raise ConfigError(
            f"vision_config.hidden_size = {vision.hidden_size} is not a multiple of "
            f"num_attention_heads = {vision.num_attention_heads}"
        )
    if vision.image_size < vision.patch_size:
        raise ConfigError(f"vision_config.image_size = {vision.image_size} is below patch_size = {vision.patch_size}")
    if text.head_dim % 2:
        raise ConfigError(f"text_config.head_dim = {text.head_dim} must be even for rotary positions")
