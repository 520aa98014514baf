"""Makes the checkpoint and the logits in this folder; run with transformers 4.40.2, with which Idefics2 was published.

python tests/unit/weights/oracle_4_40/make.py
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Idefics2Config, Idefics2ForConditionalGeneration

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    config = Idefics2Config(
        vision_config=dict(
            hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
        ),
        perceiver_config=dict(
            resampler_n_latents=3, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=6, num_key_value_heads=1
        ),
        text_config=dict(
            model_type="mistral", vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=4096, pad_token_id=0,
        ),
        image_token_id=5,
        torch_dtype="float32",
    )  # fmt: skip
    model = Idefics2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    shutil.rmtree(HERE / "checkpoint", ignore_errors=True)
    model.save_pretrained(HERE / "checkpoint", max_shard_size="20KB")

    ids = torch.tensor([[1, 7, 5, 5, 5, 9, 30, 2]])
    pixels = torch.rand(1, 1, 3, 28, 42) * 2 - 1
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            pixel_attention_mask=torch.ones(1, 1, 28, 42, dtype=torch.bool),
        ).logits
    save_file({"input_ids": ids, "pixels": pixels[0, 0].contiguous(), "logits": logits}, HERE / "expected.safetensors")


if __name__ == "__main__":
    main()
