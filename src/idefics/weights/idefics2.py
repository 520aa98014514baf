"""How Idefics2's published tensors are named, and by which names its checkpoints call themselves."""

from __future__ import annotations

from idefics.weights.rename import RenameTable

__all__ = ["ARCHITECTURES", "PARTS", "TABLE"]

ARCHITECTURES = ("Idefics2ForConditionalGeneration",)

# What `idefics info` and `plan` count apart, by our module names.
PARTS = {"vision": "vision_model", "connector": "connector", "text": "text_model", "head": "lm_head"}

# fmt: off
TABLE = RenameTable(
    {
        # SigLIP
        "model.vision_model.embeddings.patch_embedding":
            "vision_model.embeddings.patch_embedding",
        "model.vision_model.embeddings.position_embedding":
            "vision_model.embeddings.position_embedding",
        "model.vision_model.encoder.layers.{layer}.layer_norm1":
            "vision_model.encoder.layers.{layer}.layer_norm1",
        "model.vision_model.encoder.layers.{layer}.self_attn.{q,k,v,out}_proj":
            "vision_model.encoder.layers.{layer}.self_attn.{q,k,v,out}_proj",
        "model.vision_model.encoder.layers.{layer}.layer_norm2":
            "vision_model.encoder.layers.{layer}.layer_norm2",
        "model.vision_model.encoder.layers.{layer}.mlp.{fc1,fc2}":
            "vision_model.encoder.layers.{layer}.mlp.{fc1,fc2}",
        "model.vision_model.post_layernorm":
            "vision_model.post_layernorm",
        # connector
        "model.connector.modality_projection.{gate,up,down}_proj":
            "connector.modality_projection.{gate,up,down}_proj",
        "model.connector.perceiver_resampler.latents":
            "connector.perceiver_resampler.latents",
        "model.connector.perceiver_resampler.layers.{layer}.input_{latents,context}_norm":
            "connector.perceiver_resampler.layers.{layer}.input_{latents,context}_norm",
        "model.connector.perceiver_resampler.layers.{layer}.self_attn.{q,k,v,o}_proj":
            "connector.perceiver_resampler.layers.{layer}.self_attn.{q,k,v,o}_proj",
        "model.connector.perceiver_resampler.layers.{layer}.post_attention_layernorm":
            "connector.perceiver_resampler.layers.{layer}.post_attention_layernorm",
        "model.connector.perceiver_resampler.layers.{layer}.mlp.{gate,up,down}_proj":
            "connector.perceiver_resampler.layers.{layer}.mlp.{gate,up,down}_proj",
        "model.connector.perceiver_resampler.norm":
            "connector.perceiver_resampler.norm",
        # Mistral
        "model.text_model.embed_tokens":
            "text_model.embed_tokens",
        "model.text_model.layers.{layer}.input_layernorm":
            "text_model.layers.{layer}.input_layernorm",
        "model.text_model.layers.{layer}.self_attn.{q,k,v,o}_proj":
            "text_model.layers.{layer}.self_attn.{q,k,v,o}_proj",
        "model.text_model.layers.{layer}.post_attention_layernorm":
            "text_model.layers.{layer}.post_attention_layernorm",
        "model.text_model.layers.{layer}.mlp.{gate,up,down}_proj":
            "text_model.layers.{layer}.mlp.{gate,up,down}_proj",
        "model.text_model.norm":
            "text_model.norm",
        "lm_head": "lm_head",
        # dropped on purpose: buffers of older files, computed here
        "model.vision_model.embeddings.position_ids": None,
        "model.text_model.layers.{layer}.self_attn.rotary_emb.inv_freq": None,
        "model.text_model.rotary_emb.inv_freq": None,
    }
)
# fmt: on
