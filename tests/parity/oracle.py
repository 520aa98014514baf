"""The reference model and ours with the same random weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from gated import padded
from idefics.config import Config, Idefics2Config
from idefics.hf.modeling import Idefics2ForConditionalGeneration, IdeficsForVisionText2Text
from idefics.hf.pretrained import PretrainedModel
from idefics.weights.families import family_of

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


CLASSES: dict[str, tuple[Any, Any, type[PretrainedModel]]] = {
    "idefics2": (transformers.Idefics2Config, transformers.Idefics2ForConditionalGeneration, Idefics2ForConditionalGeneration),
    "idefics": (transformers.IdeficsConfig, transformers.IdeficsForVisionText2Text, IdeficsForVisionText2Text),
}


def pair(config: Config, *, seed: int = 0, attention: str = "eager", dtype: torch.dtype = torch.float32) -> Pair:
    """The reference and ours, sharing weights that make the logits vary widely."""
    config_class, reference_class, our_class = CLASSES[config.model_type]
    reference = reference_class(config_class(**config.to_dict())).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(reference.named_parameters()):
            parameter.normal_(1.0 if "norm" in name or "alpha" in name else 0.0, 0.25, generator=generator)
    reference.set_attn_implementation(attention)
    reference.requires_grad_(True)  # the reference freezes what it was told to, at its making
    ours = our_class(config, attn_implementation=attention).eval()
    ours.model.load_state_dict(by_our_names(config, reference.state_dict().items()))
    return Pair(reference.to(dtype), ours.to(dtype))


def by_our_names(config: Config, named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """What the reference calls by published names, by ours."""
    table = family_of(config).table
    return {str(table.ours(name)): value for name, value in named}


def greedy_pair(models: Pair, inputs: dict[str, torch.Tensor], **options: object) -> tuple[list[list[int]], list[list[int]]]:
    """New tokens of the reference and of ours, without padding at their ends."""
    options = {"eos_token_id": EOS, "pad_token_id": PAD, **options}
    width = inputs["input_ids"].shape[1]
    theirs, ours = (model.generate(**inputs, **options)[:, width:] for model in (models.reference, models.ours))
    return _trimmed(theirs), _trimmed(ours)


def _trimmed(ids: torch.Tensor) -> list[list[int]]:
    rows = []
    for row in ids.tolist():
        while row and row[-1] == PAD:
            row.pop()
        rows.append(row)
    return rows


def assert_gradients_agree(models: Pair, theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """Two losses, one per model, have the same gradients in every parameter."""
    models.reference.zero_grad()
    models.ours.zero_grad()
    theirs.backward()
    ours.backward()
    network = models.ours.model
    expected = by_our_names(network.config, ((name, p.grad) for name, p in models.reference.named_parameters()))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def assert_within_rounding(exact: Pair, low: Pair, inputs: dict[str, torch.Tensor], where: torch.Tensor | None = None) -> None:
    """In 16 bits both stay as near to float32 as the other does: rounding, not another formula."""
    where = torch.ones_like(inputs["input_ids"]).bool() if where is None else where
    dtype = low.ours.dtype
    narrow = {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}
    truth = exact.reference(**inputs).logits[where]
    ours, theirs = (model(**narrow).logits[where].float() for model in (low.ours, low.reference))
    ours_error, theirs_error = ((x - truth).abs().max().item() for x in (ours, theirs))
    step = torch.finfo(dtype).eps * truth.abs().max().item()
    assert ours_error <= 2 * theirs_error + step, f"ours {ours_error}, the reference {theirs_error}"


@dataclass(frozen=True)
class Pair:
    """Same weights, two implementations."""

    reference: Any
    ours: PretrainedModel


def image_block(images: int, *, split: bool = False) -> list[int]:
    """Ids of adjacent images."""
    block = ([FAKE] + [IMAGE] * LATENTS) * (5 if split else 1) * images
    return [*block, FAKE] if images else []


def batch(rows: list[list[int]], images: list[list[torch.Tensor]], *, side: str = "left") -> dict[str, torch.Tensor]:
    """Rows of ids and their images, padded as the reference's processor does."""
    ids, mask = padded(rows, side=side, fill=PAD)
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
