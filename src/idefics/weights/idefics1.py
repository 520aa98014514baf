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
        "model.vision_model.embeddings.patch_embedding.weight":
            "vision_model.embeddings.patch_embedding.weight",
        "model.vision_model.embeddings.position_embedding.weight":
            "vision_model.embeddings.position_embedding.weight",
        "model.vision_model.pre_layrnorm.{weight,bias}":
            "vision_model.pre_layrnorm.{weight,bias}",
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
        # resampler; the second number is 0 for attention and 1 for the MLP
        "model.perceiver_resampler.latents":
            "perceiver_resampler.latents",
        "model.perceiver_resampler.blocks.{layer}.{layer}.{context,latents,q,k}_layer_norm.{weight,bias}":
            "perceiver_resampler.blocks.{layer}.{layer}.{context,latents,q,k}_layer_norm.{weight,bias}",
        "model.perceiver_resampler.blocks.{layer}.{layer}.{q,k,v,output}_proj.weight":
            "perceiver_resampler.blocks.{layer}.{layer}.{q,k,v,output}_proj.weight",
        "model.perceiver_resampler.blocks.{layer}.{layer}.ln.{weight,bias}":
            "perceiver_resampler.blocks.{layer}.{layer}.ln.{weight,bias}",
        "model.perceiver_resampler.blocks.{layer}.{layer}.{fc,c_proj}.weight":
            "perceiver_resampler.blocks.{layer}.{layer}.{fc,c_proj}.weight",
        "model.perceiver_resampler.layer_norm.{weight,bias}":
            "perceiver_resampler.layer_norm.{weight,bias}",
        # LLaMA
        "model.embed_tokens.weight":
            "text_model.embed_tokens.weight",
        "model.embed_tokens.additional_embedding.weight":
            "text_model.embed_tokens.additional_embedding.weight",
        "model.layers.{layer}.input_layernorm.weight":
            "text_model.layers.{layer}.input_layernorm.weight",
        "model.layers.{layer}.self_attn.{q,k,v,o}_proj.weight":
            "text_model.layers.{layer}.self_attn.{q,k,v,o}_proj.weight",
        "model.layers.{layer}.post_attention_layernorm.weight":
            "text_model.layers.{layer}.post_attention_layernorm.weight",
        "model.layers.{layer}.mlp.{gate,up,down}_proj.weight":
            "text_model.layers.{layer}.mlp.{gate,up,down}_proj.weight",
        "model.norm.weight":
            "text_model.norm.weight",
        # gated cross-attention
        "model.gated_cross_attn_layers.{layer}.alpha_{cross_attn,dense}":
            "text_model.gated_cross_attn_layers.{layer}.alpha_{cross_attn,dense}",
        "model.gated_cross_attn_layers.{layer}.input_layernorm.weight":
            "text_model.gated_cross_attn_layers.{layer}.input_layernorm.weight",
        "model.gated_cross_attn_layers.{layer}.cross_attn.{q,k,v,o}_proj.weight":
            "text_model.gated_cross_attn_layers.{layer}.cross_attn.{q,k,v,o}_proj.weight",
        "model.gated_cross_attn_layers.{layer}.cross_attn.{q,k}_layer_norm.weight":
            "text_model.gated_cross_attn_layers.{layer}.cross_attn.{q,k}_layer_norm.weight",
        "model.gated_cross_attn_layers.{layer}.post_attention_layernorm.weight":
            "text_model.gated_cross_attn_layers.{layer}.post_attention_layernorm.weight",
        "model.gated_cross_attn_layers.{layer}.mlp.{gate,up,down}_proj.weight":
            "text_model.gated_cross_attn_layers.{layer}.mlp.{gate,up,down}_proj.weight",
        "lm_head.weight": "lm_head.weight",
        "lm_head.additional_fc.weight": "lm_head.additional_fc.weight",
        # dropped on purpose: buffers of older files, computed here
        "model.vision_model.embeddings.position_ids": None,
        "model.layers.{layer}.self_attn.rotary_emb.inv_freq": None,
        "model.gated_cross_attn_layers.{layer}.cross_attn.rotary_emb.inv_freq": None,
        "model.rotary_emb.inv_freq": None,
    }
)
# fmt: on
