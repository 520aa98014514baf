"""How the first IDEFICS' published tensors are named, and by which names its checkpoints call themselves."""

from __future__ import annotations

from idefics.weights.rename import RenameTable

__all__ = ["ARCHITECTURES", "PARTS", "TABLE"]

ARCHITECTURES = ("IdeficsForVisionText2Text",)

# What `idefics info` and `plan` count apart, by our module names.
PARTS = {
    "vision": "vision_model",
    "resampler": "perceiver_resampler",
    "cross-attention": "text_model.gated_cross_attn_layers",
    "text": "text_model",
    "head": "lm_head",
}

# fmt: off
TABLE = RenameTable(
    {
        # CLIP
        "model.vision_model.embeddings.class_embedding":
            "vision_model.embeddings.class_embedding",
        "model.vision_model.embeddings.patch_embedding":
            "vision_model.embeddings.patch_embedding",
        "model.vision_model.embeddings.position_embedding":
            "vision_model.embeddings.position_embedding",
        "model.vision_model.pre_layrnorm":
            "vision_model.pre_layrnorm",
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
        # resampler; the second number is 0 for attention and 1 for the MLP
        "model.perceiver_resampler.latents":
            "perceiver_resampler.latents",
        "model.perceiver_resampler.blocks.{layer}.{layer}.{context,latents,q,k}_layer_norm":
            "perceiver_resampler.blocks.{layer}.{layer}.{context,latents,q,k}_layer_norm",
        "model.perceiver_resampler.blocks.{layer}.{layer}.{q,k,v,output}_proj":
            "perceiver_resampler.blocks.{layer}.{layer}.{q,k,v,output}_proj",
        "model.perceiver_resampler.blocks.{layer}.{layer}.ln":
            "perceiver_resampler.blocks.{layer}.{layer}.ln",
        "model.perceiver_resampler.blocks.{layer}.{layer}.{fc,c_proj}":
            "perceiver_resampler.blocks.{layer}.{layer}.{fc,c_proj}",
        "model.perceiver_resampler.layer_norm":
            "perceiver_resampler.layer_norm",
        # LLaMA
        "model.embed_tokens":
            "text_model.embed_tokens",
        "model.layers.{layer}.input_layernorm":
            "text_model.layers.{layer}.input_layernorm",
        "model.layers.{layer}.self_attn.{q,k,v,o}_proj":
            "text_model.layers.{layer}.self_attn.{q,k,v,o}_proj",
        "model.layers.{layer}.post_attention_layernorm":
            "text_model.layers.{layer}.post_attention_layernorm",
        "model.layers.{layer}.mlp.{gate,up,down}_proj":
            "text_model.layers.{layer}.mlp.{gate,up,down}_proj",
        "model.norm":
            "text_model.norm",
        # gated cross-attention
        "model.gated_cross_attn_layers.{layer}.alpha_{cross_attn,dense}":
            "text_model.gated_cross_attn_layers.{layer}.alpha_{cross_attn,dense}",
        "model.gated_cross_attn_layers.{layer}.input_layernorm":
            "text_model.gated_cross_attn_layers.{layer}.input_layernorm",
        "model.gated_cross_attn_layers.{layer}.cross_attn.{q,k,v,o}_proj":
            "text_model.gated_cross_attn_layers.{layer}.cross_attn.{q,k,v,o}_proj",
        "model.gated_cross_attn_layers.{layer}.cross_attn.{q,k}_layer_norm":
            "text_model.gated_cross_attn_layers.{layer}.cross_attn.{q,k}_layer_norm",
        "model.gated_cross_attn_layers.{layer}.post_attention_layernorm":
            "text_model.gated_cross_attn_layers.{layer}.post_attention_layernorm",
        "model.gated_cross_attn_layers.{layer}.mlp.{gate,up,down}_proj":
            "text_model.gated_cross_attn_layers.{layer}.mlp.{gate,up,down}_proj",
        "lm_head": "lm_head",
        # dropped on purpose: buffers of older files, computed here
        "model.vision_model.embeddings.position_ids": None,
        "model.layers.{layer}.self_attn.rotary_emb.inv_freq": None,
        "model.gated_cross_attn_layers.{layer}.cross_attn.rotary_emb.inv_freq": None,
        "model.rotary_emb.inv_freq": None,
    }
)
# fmt: on
