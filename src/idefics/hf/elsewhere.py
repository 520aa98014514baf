"""What of the reference's face is not here: said by name and in one sentence, and accepted where it asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idefics.errors import NotOffered

__all__ = ["asks_for_nothing", "features_of_whole_model", "not_offered", "refuse_attribute", "refuse_reference_names"]

_QUANTISED = "quantised loading is not part of this version"
_FALSE = (False,)
_ARGUMENTS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    # of from_pretrained
    "quantization_config": ((), "quantised checkpoints are not read by this version"),
    "load_in_4bit": (_FALSE, _QUANTISED),
    "load_in_8bit": (_FALSE, _QUANTISED),
    "config": ((), "the folder's own config.json is read"),
    "state_dict": ((), "load_state_dict takes one after loading, or before saving"),
    "variant": ((), ""),
    "subfolder": (("",), "give the folder itself"),
    "max_memory": ((), "device_map takes a mapping from parts to devices"),
    "offload_folder": ((), "weights stay in their mapped files"),
    "offload_state_dict": (_FALSE, ""),
    "offload_buffers": (_FALSE, ""),
    "force_download": (_FALSE, ""),
    "proxies": (({},), ""),
    "mirror": (("",), ""),
    "from_tf": (_FALSE, ""),
    "from_flax": (_FALSE, ""),
    "gguf_file": ((), ""),
    "key_mapping": (({},), ""),
    "ignore_mismatched_sizes": (_FALSE, "every tensor must have its shape"),
    "output_loading_info": (_FALSE, "whatever is missing or too much is an error"),
    "return_unused_kwargs": (_FALSE, ""),
    "tp_plan": ((), "idefics.load takes tensor_parallel"),
    "tp_size": ((), "idefics.load takes tensor_parallel"),
    "adapter_kwargs": (({},), ""),
    "use_kernels": (_FALSE, ""),
    # of save_pretrained
    "safe_serialization": ((True,), "only safetensors are written"),
    "is_main_process": ((True,), ""),
    "push_to_hub": (_FALSE, ""),
    "save_function": ((), ""),
    "save_peft_format": ((True,), ""),
    "legacy_format": ((True, False), ""),
    "filename_prefix": ((), ""),
    # of forward
    "past_key_values": ((), "generate keeps a cache of its own"),
    "inputs_embeds": ((), ""),
    "output_attentions": (_FALSE, "attention is never written out"),
    "output_hidden_states": (_FALSE, "hidden states are not kept"),
    "cache_position": ((), ""),
    "logits_to_keep": ((0,), "every position's logits are returned"),
    "num_logits_to_keep": ((0,), "every position's logits are returned"),
    "num_items_in_batch": ((), ""),
    "perceiver_embeddings": ((), ""),
    "image_encoder_embeddings": ((), ""),
    "interpolate_pos_encoding": (_FALSE, "this family's tower places patches of images of any size"),
}
"""Arguments by name: values that ask for nothing, and what does the like here."""

_ATTRIBUTES = {
    **dict.fromkeys(
        (
            # of models
            "active_adapters", "add_adapter", "add_model_tags", "base_model", "can_generate", "compute_transition_scores",
            "delete_adapter", "dequantize", "disable_adapters", "enable_adapters", "enable_input_require_grads",
            "generate_batch", "get_decoder", "get_encoder", "get_memory_footprint", "gradient_checkpointing_disable",
            "gradient_checkpointing_enable", "init_weights", "is_gradient_checkpointing", "load_adapter", "loss_function",
            "main_input_name", "name_or_path", "num_parameters", "prepare_inputs_for_generation", "push_to_hub",
            "register_for_auto_class", "resize_position_embeddings", "resize_token_embeddings", "set_adapter",
            "set_attn_implementation", "set_decoder", "set_input_embeddings", "set_output_embeddings", "tie_weights",
            "warnings_issued",
            # of processors
            "all_special_multimodal_tokens", "center_crop", "from_args_and_dict", "get_image_processor_dict",
            "get_processor_dict", "image_token_ids", "normalize", "pad", "parse_response", "post_process_multimodal_output",
            "rescale", "resize", "split_images", "valid_kwargs", "validate_inputs",
            # of configurations
            "_attn_implementation", "_name_or_path", "architectures", "attribute_map", "from_json_file", "get_config_dict",
            "id2label", "is_encoder_decoder", "label2id", "num_labels", "output_attentions", "output_hidden_states",
            "problem_type", "return_dict", "rope_scaling", "sub_configs", "to_diff_dict", "transformers_version", "update",
            "use_cache", "use_return_dict",
        ),
        "",
    ),
    "lm_head": "get_output_embeddings gives it",
    "get_text_config": "text_config is there",
    "post_process_image_text_to_text": "batch_decode gives the texts",
    "to_json_file": "save_pretrained writes config.json",
    "to_json_string": "to_dict gives the content",
    "torch_dtype": "dtype has its name",
}  # fmt: skip
"""What the reference's objects have, and what does the like here."""

_REFERENCE_NAMES = frozenset(
    {
        "attention_mask", "image_attention_mask", "image_hidden_states", "input_ids", "inputs_embeds", "labels",
        "output_attentions", "output_hidden_states", "past_key_values", "patch_attention_mask", "pixel_attention_mask",
        "pixel_values", "position_ids", "return_dict",
    }
)  # fmt: skip


def asks_for_nothing(name: str, value: Any) -> bool:
    """Whether an argument of the reference's has a value that changes nothing; None never does."""
    neutral = _ARGUMENTS[name][0] if name in _ARGUMENTS else ()
    return value is None or (isinstance(value, bool | int | str | dict) and value in neutral)


def not_offered(name: str, value: Any) -> None:
    """Refuses an argument of the reference's; does nothing about others.

    Raises:
        NotOffered: it is one.
    """
    if name in _ARGUMENTS:
        raise NotOffered(f"{name}={_brief(value)}", instead=_ARGUMENTS[name][1])


def refuse_attribute(owner: str, name: str) -> None:
    """Says of what the reference's objects have and ours have not where it is to be had; does nothing about others.

    Raises:
        NotOffered: which is an `AttributeError`, so that `hasattr` says no.
    """
    if name in _ATTRIBUTES:
        raise NotOffered(f"{owner}.{name}", instead=_ATTRIBUTES[name])


def features_of_whole_model(*_args: Any, **_options: Any) -> None:
    """Stands where the reference has the method of this name, on the model within the model.

    Raises:
        NotOffered: always.
    """
    raise NotOffered("model.model.get_image_features", instead="model.get_image_features takes the same")


def refuse_reference_names(module: object, _args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Before a part of a model is called by itself: the parts have names of their own for what they take.

    Raises:
        NotOffered: it is called as the reference's part of this name.
    """
    names = sorted({*named} & _REFERENCE_NAMES)
    if names:
        instead = "the whole model takes them; model.get_image_features gives an image's latents"
        raise NotOffered(f"{type(module).__name__}({', '.join(f'{name}=...' for name in names)})", instead=instead)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
