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
        "model.vision_model.embeddings.patch_embedding.{weight,bias}":
            "vision_model.embeddings.patch_embedding.{weight,bias}",
        "model.vision_model.embeddings.position_embedding.weight":
            "vision_model.embeddings.position_embedding.weight",
        "model.vision_model.encoder.layers.{layer}.layer_norm1.{weight,bias}":
            "vision_model.encoder.layers.{layer}.layer_norm1.{weight,bias}",
        "model.vision_model.encoder.layers.{layer}.self_attn.{q,k,v,out}_proj.{weight,bias}":
            "vision_model.encoder.layers.{layer}.self_attn.{q,k,v,out}_proj.{weight,bias}",
        "model.vision_model.encoder.layers.{layer}.layer_norm2.{weight,bias}":
            "vision_model.encoder.layers.{layer}.layer_norm2.{weight,bias}",
        "model.vision_model.encoder.layers.{layer}.mlp.{fc1,fc2}.{weight,bias}":
            "vision_model.encoder.layers.{layer}.mlp.{fc1,fc2}.{weight,bias}",
        "model.vision_model.post_layernorm.{weight,bias}":
            "vision_model.post_layernorm.{weight,bias}",
        # connector
        "model.connector.modality_projection.{gate,up,down}_proj.weight":
            "connector.modality_projection.{gate,up,down}_proj.weight",
        "model.connector.perceiver_resampler.latents":
            "connector.perceiver_resampler.latents",
        "model.connector.perceiver_resampler.layers.{layer}.input_{latents,context}_norm.weight":
            "connector.perceiver_resampler.layers.{layer}.input_{latents,context}_norm.weight",
        "model.connector.perceiver_resampler.layers.{layer}.self_attn.{q,k,v,o}_proj.weight":
            "connector.perceiver_resampler.layers.{layer}.self_attn.{q,k,v,o}_proj.weight",
        "model.connector.perceiver_resampler.layers.{layer}.post_attention_layernorm.weight":
            "connector.perceiver_resampler.layers.{layer}.post_attention_layernorm.weight",
        "model.connector.perceiver_resampler.layers.{layer}.mlp.{gate,up,down}_proj.weight":
            "connector.perceiver_resampler.layers.{layer}.mlp.{gate,up,down}_proj.weight",
        "model.connector.perceiver_resampler.norm.weight":
            "connector.perceiver_resampler.norm.weight",
        # Mistral
        "model.text_model.embed_tokens.weight":
            "text_model.embed_tokens.weight",
        "model.text_model.layers.{layer}.input_layernorm.weight":
            "text_model.layers.{layer}.input_layernorm.weight",
        "model.text_model.layers.{layer}.self_attn.{q,k,v,o}_proj.weight":
            "text_model.layers.{layer}.self_attn.{q,k,v,o}_proj.weight",
        "model.text_model.layers.{layer}.post_attention_layernorm.weight":
            "text_model.layers.{layer}.post_attention_layernorm.weight",
        "model.text_model.layers.{layer}.mlp.{gate,up,down}_proj.weight":
            "text_model.layers.{layer}.mlp.{gate,up,down}_proj.weight",
        "model.text_model.norm.weight":
            "text_model.norm.weight",
        "lm_head.weight": "lm_head.weight",
        # dropped on purpose: buffers of older files, computed here
        "model.vision_model.embeddings.position_ids": None,
        "model.text_model.layers.{layer}.self_attn.rotary_emb.inv_freq": None,
        "model.text_model.rotary_emb.inv_freq": None,
    }
)
# fmt: on
