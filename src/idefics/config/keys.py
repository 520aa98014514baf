"""Keys of files that are no fields here: those that change nothing, and those that nobody here knows.

A key that is neither a field nor known to be inert may change the maths, so it is refused if it asks for something. One that
is null, false, empty or zero asks for nothing: the next release of the reference may write it into every file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idefics.config.rules import brief
from idefics.errors import ConfigError

__all__ = ["Keys", "asks_for_nothing", "shown"]

# What files hold in every part: bookkeeping, defaults for generation (which `generation_config.json` owns), training and
# initialisation of parts that a checkpoint overwrites.
_EVERYWHERE = frozenset(
    """
    _attn_implementation_autoset _flash_attn_2_enabled _name_or_path add_cross_attention architectures attn_implementation
    auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label
    initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype dtype torchscript
    transformers_version typical_p use_bfloat16 use_cache
    freeze_lm_head freeze_text_layers freeze_text_module_exceptions freeze_vision_layers freeze_vision_module_exceptions
    """.split()  # noqa: SIM905 (names, not code)
)
_INERT: Mapping[str, frozenset[str]] = {
    # At the top of a file of the first generation stands its decoder, too.
    "config": _EVERYWHERE | {"image_seq_len", "max_sequence_length", "unk_token_id", "vision_embed_dim",
                                         "vision_image_size", "vision_model_name"},
    "vision_config": _EVERYWHERE | {"initializer_factor"},
    "perceiver_config": _EVERYWHERE,
    "text_config": _EVERYWHERE | {"max_sequence_length", "unk_token_id"},
}  # fmt: skip
# Keys that are honoured at one value only; any other value asks for maths that no published checkpoint has.
_FIXED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "config": {
        "attention_dropout": (0, 0.0), "dropout": (0, 0.0), "cross_layer_activation_function": ("swiglu",),
        "use_resampler": (True,), "rope_scaling": (None,), "layer_types": (None,),
    },
    "vision_config": {"attention_dropout": (0, 0.0), "dropout": (0, 0.0)},
    "perceiver_config": {"attention_dropout": (0, 0.0), "qk_layer_norms_perceiver": (False,)},
    "text_config": {"attention_dropout": (0, 0.0), "rope_scaling": (None,), "layer_types": (None,)},
    "rope_parameters": {"partial_rotary_factor": (1.0, 1, None)},
}  # fmt: skip


class Keys:
    """Holds the keys of a checkpoint's files against what is known of each.

    Args:
        allow_unknown: let keys pass that ask for something nobody here knows.

    Attributes:
        passed: those that were let pass, with their values, by path.
    """

    def __init__(self, *, allow_unknown: bool) -> None:
        self._allow = allow_unknown
        self.passed: dict[str, Any] = {}

    def check(self, name: str, raw: Mapping[str, Any], known: set[str]) -> None:
        """Holds one part's keys against what is known.

        Args:
            name: of the part, as errors call it; its last word says which part it is.
            raw: its content.
            known: names of its fields.

        Raises:
            ConfigError: a key is honoured at one value and asks for another, or is unknown and asks for something.
        """
        part = name.rpartition(".")[2]
        fixed = _FIXED.get(part, {})
        for key, value in raw.items():
            if key in fixed and key not in known and value not in fixed[key]:
                raise ConfigError(f"{name}.{key} = {brief(value)} is not supported; only {fixed[key][0]!r} is")
        known = known | set(fixed) | _INERT.get(part, frozenset())
        unknown = {key: value for key, value in sorted(raw.items()) if key not in known and not asks_for_nothing(value)}
        self._refuse(name, unknown)
        self.passed.update({f"{name}.{key}": value for key, value in unknown.items()})

    def admit(self, where: str, unknown: Mapping[str, Any]) -> None:
        """Lets keys of another file pass that ask for something nobody here knows, if that is allowed.

        Args:
            where: they stand, as errors say it; begins with the path of the file.
            unknown: they and their values.

        Raises:
            ConfigError: it is not allowed.
        """
        self._refuse(where, unknown)
        self.passed.update({f"{Path(where).name}: {key}": value for key, value in unknown.items()})

    def _refuse(self, name: str, unknown: Mapping[str, Any]) -> None:
        if unknown and not self._allow:
            raise ConfigError(
                f"{name} has key(s) this version does not know and so cannot honour: {shown(unknown)}; remove them if they "
                "change nothing, upgrade idefics, or take the model as if they were not there with "
                "allow_unknown_config=True (--allow-unknown-config)"
            )


def asks_for_nothing(value: Any) -> bool:
    """Whether a value of an unknown key is null, false, empty or zero.

    >>> [asks_for_nothing(value) for value in (None, False, 0, 0.0, "", [], {}, "no", -1, [0])]
    [True, True, True, True, True, True, True, False, False, False]
    """
    return value is None or value == 0 or value in ("", [], {})


def shown(keys: Mapping[str, Any]) -> str:
    """Keys and values in a message; the first ten."""
    more = f" and {len(keys) - 10} more" if len(keys) > 10 else ""
    return ", ".join(f"{brief_name(key)} = {brief(value)}" for key, value in list(keys.items())[:10]) + more


def brief_name(key: str) -> str:
    """A key as a message shows it."""
    return key if len(key) <= 80 else f"{key[:60]}..."
