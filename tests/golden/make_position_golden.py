"""Writes position_buckets.json: where transformers 4.40.2 puts each row of an n-row image in a table of 70.

Run in an environment of its own (pip install transformers==4.40.2 "numpy<2" torch):

    python tests/golden/make_position_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings

SIDE, PATCH = 70, 2


def buckets(rows: int) -> list[int]:
    """The table rows that an image of `rows` x 1 patches reads, seen through an embedding that shows its index."""
    config = Idefics2VisionConfig(hidden_size=1, image_size=SIDE * PATCH, patch_size=PATCH, num_attention_heads=1)
    embeddings = Idefics2VisionEmbeddings(config)
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight.copy_(torch.arange(SIDE * SIDE).float()[:, None])
        pixels = torch.zeros(1, 3, rows * PATCH, PATCH)
        shown = embeddings(pixel_values=pixels, patch_attention_mask=torch.ones(1, rows, 1, dtype=torch.bool))
    return (shown.flatten().long() // SIDE).tolist()


if __name__ == "__main__":
    golden = {
        "made_by": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "side": SIDE,
        "buckets": {str(rows): buckets(rows) for rows in range(1, SIDE + 1)},
    }
    (Path(__file__).parent / "position_buckets.json").write_text(json.dumps(golden) + "\n")
