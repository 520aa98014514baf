"""Tiny models of the first generation, and prompts for them, written by hand: ids, images, and who sees which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from idefics.config import Idefics1Config
from idefics.inputs import ModelInputs
from idefics.model.idefics1 import Idefics1
from idefics.model.layers.attention import Backend
from idefics.weights.init import initialize

PAD, BOS, EOS, FAKE, IMAGE, END, VOCAB = 0, 1, 2, 97, 98, 99, 100
SIDE = 28  # pixels of an image

Row = list[int]
Pictures = list[torch.Tensor]


def tiny_raw(**changes: Any) -> dict[str, Any]:
    """The content of a `config.json`; head counts, sizes and tables all differ, and every gate is open.

    Args:
        changes: keys at the top; `additional_vocab_size` is taken off `vocab_size`, so that ids stay what they are, and
            `qk_layer_norms_perceiver` goes where it belongs.
    """
    added = changes.get("additional_vocab_size", 3)
    perceiver_norms = changes.pop("qk_layer_norms_perceiver", True)
    raw: dict[str, Any] = dict(
        model_type="idefics", vocab_size=VOCAB - added, additional_vocab_size=added, hidden_size=32, intermediate_size=48,
        num_hidden_layers=4, num_attention_heads=4, cross_layer_interval=2, qk_layer_norms=True, alpha_type="float",
        alpha_initializer="ones", use_resampler=True, max_position_embeddings=256,
        pad_token_id=PAD,
    )  # fmt: skip
    raw.update(changes)
    vision = dict(
        embed_dim=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=SIDE, patch_size=14
    )
    perceiver = dict(
        use_resampler=raw["use_resampler"], resampler_n_latents=5, resampler_depth=2, resampler_n_heads=2, resampler_head_dim=6,
        qk_layer_norms_perceiver=perceiver_norms,
    )  # fmt: skip
    return {**raw, "vision_config": vision, "perceiver_config": perceiver}


def tiny_config(**changes: Any) -> Idefics1Config:
    """Of `tiny_raw`."""
    return Idefics1Config.from_dict(tiny_raw(**changes))


def tiny_model(
    *, seed: int = 0, std: float = 0.3, dtype: torch.dtype = torch.float32, backend: Backend = "sdpa", **changes: Any
) -> Idefics1:
    """A model in which every part matters to the output."""
    model = Idefics1(tiny_config(**changes), backend=backend)
    initialize(model, seed=seed, std=std)
    return model.to(dtype).eval()


def seen(row: Row) -> list[int]:
    """Which of its images each token sees: the last before it, the image's own token included; none after an end."""
    found, count, ended = [], 0, True
    for token in row:
        if token == IMAGE:
            count, ended = count + 1, False
        found.append(-1 if ended else count - 1)
        ended |= token == EOS
    return found


def padded(rows: Sequence[Row], *, side: str = "left", fill: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of numbers in one tensor, and its mask."""
    width = max(map(len, rows))
    out = torch.full((len(rows), width), fill)
    mask = torch.zeros_like(out)
    for b, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        out[b, place], mask[b, place] = torch.tensor(row), 1
    return out, mask


def model_inputs(rows: Sequence[Row], images: Sequence[Pictures], *, side: str = "left") -> ModelInputs:
    """What the engine takes."""
    ids, mask = padded(rows, side=side)
    return ModelInputs(
        input_ids_BT=ids,
        attention_mask_BT=mask,
        images_CHW=tuple(image for row in images for image in row),
        images_per_row=tuple(map(len, images)),
        seen_BT=padded([seen(row) for row in rows], side=side, fill=-1)[0],
    )


def reference_inputs(rows: Sequence[Row], images: Sequence[Pictures], *, side: str = "left") -> dict[str, torch.Tensor]:
    """What the reference takes, which wants at least one image per row, seen or not."""
    ids, mask = padded(rows, side=side)
    count = max(1, *map(len, images))
    pixels = torch.zeros(len(rows), count, 3, SIDE, SIDE)
    for b, row in enumerate(images):
        for n, image in enumerate(row):
            pixels[b, n] = image
    seen_BT = padded([seen(row) for row in rows], side=side, fill=-1)[0]
    sees = (seen_BT[..., None] == torch.arange(count)).long()
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_attention_mask": sees}


def block(images: int) -> Row:
    """Ids of adjacent images: those in the middle share a token."""
    return [FAKE, *[token for _ in range(images) for token in (IMAGE, FAKE)]] if images else []


def pictures(count: int, *, seed: int = 0) -> Pictures:
    """Noise."""
    return list(torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)).unbind())


def random_prompt(generator: torch.Generator, *, most: int = 4) -> tuple[Row, Pictures]:
    """A prompt with 0 to `most` images among words, sometimes adjacent, sometimes after the end of a document."""

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def words(low: int, high: int) -> Row:
        return [number(3, FAKE - 1) for _ in range(number(low, high))]

    ids, images = [BOS, *words(0, 5)], []
    left = number(0, most)
    while left:
        together = number(1, left)
        ids += block(together) + words(0, 6)
        if number(0, 4) == 0:
            ids += [EOS, BOS, *words(1, 3)]
        images += list(torch.randn(together, 3, SIDE, SIDE, generator=generator).unbind())
        left -= together
    return [*ids, number(3, FAKE - 1)], images


def random_batch(seed: int, rows: int, *, most: int = 4) -> tuple[list[Row], list[Pictures]]:
    """Several such prompts."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [random_prompt(generator, most=most) for _ in range(rows)]
    return [ids for ids, _ in drawn], [images for _, images in drawn]


# What masks get wrong: nothing to see, adjacent images, words before the first, documents packed with an end between them.
EDGES: dict[str, tuple[list[Row], list[Pictures]]] = {
    "no image at all": ([[BOS, 5, 6, 7], [BOS, 9]], [[], []]),
    "adjacent images": ([[BOS, *block(3), 8, 9]], [pictures(3)]),
    "text before the first image": ([[BOS, 5, 6, 7, 8, *block(1), 9]], [pictures(1)]),
    "image first": ([[*block(1), 9, 10]], [pictures(1)]),
    "packed documents": (
        [[BOS, *block(1), 5, EOS, BOS, 7, 8, *block(2), 9, EOS, BOS, 11]],
        [pictures(3)],
    ),
    "mixed image counts": (
        [[BOS, *block(2), 5, *block(1), 6], [BOS, 7, 8], [BOS, *block(1)], [BOS, 4, *block(2), 5, 6, 7, 8, 9, 10]],
        [pictures(3), [], pictures(1, seed=1), pictures(2, seed=2)],
    ),
}
