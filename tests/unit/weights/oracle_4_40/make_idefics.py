"""Makes `idefics/` in this folder with transformers 4.40.2: a checkpoint of the first generation and what it answers.

python tests/unit/weights/oracle_4_40/make_idefics.py
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import IdeficsConfig, IdeficsForVisionText2Text

HERE = Path(__file__).parent / "idefics"
ROWS = [[1, 7, 8, 30, 31, 30, 9, 31, 30, 20, 21], [1, 30, 31, 30, 11, 12, 13], [1, 14, 15]]  # 31 stands for an image
IMAGES = 2


def main() -> None:
    torch.manual_seed(0)
    config = IdeficsConfig(
        vocab_size=30, additional_vocab_size=3, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, cross_layer_interval=2, qk_layer_norms=True, alpha_type="vector",
        use_resampler=True, max_position_embeddings=64, torch_dtype="float32",
        vision_config=dict(
            embed_dim=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
        ),
        perceiver_config=dict(
            use_resampler=True, resampler_n_latents=3, resampler_depth=2, resampler_n_heads=2, resampler_head_dim=6,
            qk_layer_norms_perceiver=True,
        ),
    )  # fmt: skip
    model = IdeficsForVisionText2Text(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name and name.endswith("weight")), 0.4)
    shutil.rmtree(HERE, ignore_errors=True)
    model.save_pretrained(HERE / "checkpoint", max_shard_size="20KB")

    width = max(map(len, ROWS))
    ids = torch.zeros(len(ROWS), width, dtype=torch.int64)
    mask, seen = torch.zeros_like(ids), torch.zeros(len(ROWS), width, IMAGES, dtype=torch.int64)
    for b, row in enumerate(ROWS):
        last = -1
        for t, token in enumerate(row, start=width - len(row)):
            ids[b, t], mask[b, t] = token, 1
            last += token == 31
            if last >= 0:
                seen[b, t, last] = 1
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(len(ROWS), IMAGES, 3, 28, 28),
        "image_attention_mask": seen,
    }
    labels = ids.clone()
    labels[0, -1] = -100
    labels[mask.cumsum(1) == 1] = -100  # predicted from padding, which is counted nowhere here
    options = {"max_new_tokens": 8, "eos_token_id": 2, "pad_token_id": 0, "bad_words_ids": [[30], [31]]}
    with torch.no_grad():
        out = model(**inputs, labels=labels)
        found = {
            "labels": labels,
            "loss": out.loss,
            "logits": out.logits.contiguous(),
            "image_hidden_states": out.image_hidden_states.contiguous(),
            "greedy": model.generate(**inputs, **options, do_sample=False),
            "beams": model.generate(**inputs, **options, do_sample=False, num_beams=3),
        }
    save_file({**inputs, **found}, HERE / "expected.safetensors")


if __name__ == "__main__":
    main()
