"""The reference model and ours with the same random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from idefics.config import Idefics2Config
from idefics.hf.modeling import Idefics2ForConditionalGeneration

LATENTS, IMAGE, FAKE, BOS, EOS, PAD, VOCAB = 4, 298, 297, 1, 2, 0, 300


def tiny_config(**text: Any) -> Idefics2Config:
    """Small enough for milliseconds; every head count, size and table differs from every other."""
    return Idefics2Config.from_dict(
        {
            "vision_config": dict(
                hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=980, patch_size=14
            ),
            "perceiver_config": dict(
                resampler_n_latents=LATENTS,
                resampler_depth=2,
                resampler_n_heads=4,
                resampler_head_dim=6,
                num_key_value_heads=2,
            ),
            "text_config": dict(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                **text,
            ),
            "image_token_id": IMAGE,
        }
    )


def pair(config: Idefics2Config, *, seed: int = 0, attention: str = "eager", dtype: torch.dtype = torch.float32) -> Pair:
    """The reference and ours, sharing weights that make the logits vary widely."""
    raw = config.to_dict()
    reference = transformers.Idefics2ForConditionalGeneration(transformers.Idefics2Config(**raw)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(reference.named_parameters()):
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.25, generator=generator)
    reference.set_attn_implementation(attention)
    ours = Idefics2ForConditionalGeneration(config, attn_implementation=attention).eval()
    ours.model.load_state_dict({name.removeprefix("model."): value for name, value in reference.state_dict().items()})
    return Pair(reference.to(dtype), ours.to(dtype))


@dataclass(frozen=True)
class Pair:
    """Same weights, two implementations."""

    reference: Any
    ours: Idefics2ForConditionalGeneration


def image_block(images: int, *, split: bool = False) -> list[int]:
    """Ids of adjacent images."""
    block = ([FAKE] + [IMAGE] * LATENTS) * (5 if split else 1) * images
    return [*block, FAKE] if images else []


def batch(rows: list[list[int]], images: list[list[torch.Tensor]], *, side: str = "left") -> dict[str, torch.Tensor]:
    """Rows of ids and their images, padded as the reference's processor does."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    out = {"input_ids": ids, "attention_mask": mask}
    count = max(map(len, images))
    if count:
        height = max(i.shape[1] for row in images for i in row)
        across = max(i.shape[2] for row in images for i in row)
        pixels = torch.zeros(len(rows), count, 3, height, across)
        valid = torch.zeros(len(rows), count, height, across, dtype=torch.int64)
        for b, row in enumerate(images):
            for n, image in enumerate(row):
                _, h, w = image.shape
                pixels[b, n, :, :h, :w], valid[b, n, :h, :w] = image, 1
        out |= {"pixel_values": pixels, "pixel_attention_mask": valid}
    return out


def random_prompt(generator: torch.Generator, *, most: int = 4) -> tuple[list[int], list[torch.Tensor]]:
    """A prompt with 0 to `most` images of odd sizes between words, sometimes adjacent, sometimes split in five."""

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    ids, images = [BOS, *(number(3, FAKE - 1) for _ in range(number(1, 5)))], []
    left = number(0, most)
    while left:
        together = number(1, left)
        split = number(0, 3) == 0
        ids += image_block(together, split=split) + [number(3, FAKE - 1) for _ in range(number(0, 6))]
        sizes = [(number(14, 75), number(14, 75)) for _ in range(together * (5 if split else 1))]
        images += [torch.randn(3, h, w, generator=generator) for h, w in sizes]
        left -= together
    return [*ids, number(3, FAKE - 1)], images
