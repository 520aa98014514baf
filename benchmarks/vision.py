"""Vision tower and connector of Idefics2-8B: one photo, and five photos of different sizes together.

    python benchmarks/vision.py

The peer pads a batch to its largest image, as its processor does; ours packs images without padding.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from idefics.config import Idefics2Config
from idefics.machine.ceilings import Ceilings, ceilings
from measure import Case, compare, report

PHOTO = [(735, 980)]
MIXED = [(735, 980), (980, 735), (480, 640), (551, 980), (448, 448)]
"""Height and width after resizing: 4:3 and 3:4, a small 4:3 one, 16:9, a thumbnail."""
CASES = {"photo": ("one photo of 980 x 735", PHOTO, 2.0), "mixed": ("five photos of five sizes", MIXED, 4.0)}


def padded(images: list[Tensor]) -> dict[str, Tensor]:
    """A batch as the reference's processor makes it."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    pixels = torch.zeros(1, len(images), 3, height, width, dtype=images[0].dtype)
    mask = torch.zeros(1, len(images), height, width, dtype=torch.int64)
    for index, image in enumerate(images):
        _, h, w = image.shape
        pixels[0, index, :, :h, :w], mask[0, index, :h, :w] = image, 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def operations(made: Idefics2Config, sizes: list[tuple[int, int]]) -> float:
    """Multiplications and additions that these images need, none padded."""
    vision, text, perceiver = made.vision_config, made.text_config, made.perceiver_config
    patch, d, inner = vision.patch_size, vision.hidden_size, vision.intermediate_size
    counts = [(h // patch) * (w // patch) for h, w in sizes]
    layer = 4 * d * d + 2 * d * inner
    tower = 3 * patch**2 * d + vision.num_hidden_layers * layer
    projection = 2 * d * text.intermediate_size + text.intermediate_size * text.hidden_size
    keys_values = 2 * perceiver.num_key_value_heads * perceiver.resampler_head_dim * text.hidden_size
    own = perceiver.resampler_n_latents * (12 * text.hidden_size**2 + keys_values)
    own += 2 * perceiver.resampler_n_latents * perceiver.resampler_n_heads * perceiver.resampler_head_dim * text.hidden_size
    each = tower + projection + perceiver.resampler_depth * keys_values
    attention = sum(2 * vision.num_hidden_layers * n * n * d for n in counts)
    return 2.0 * (sum(counts) * each + attention + len(counts) * perceiver.resampler_depth * own)


@torch.inference_mode()
def cases(made: Idefics2Config, names: list[str], reached: Ceilings, *, rounds: int) -> list[Case]:
    from same_weights import both, difference  # not at the top: it imports transformers, which gpu.py can do without

    reference, model = both(made)
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in names:
        title, sizes, target = CASES[name]
        images = [torch.randn(3, h, w, generator=generator).bfloat16() for h, w in sizes]
        small = [image[:, : image.shape[1] // 4, : image.shape[2] // 4].contiguous() for image in images]

        def theirs(images: list[Tensor]) -> Tensor:
            rows = reference.model.get_image_features(**padded(images)).pooler_output
            return torch.cat(rows).view(len(images), -1, made.text_config.hidden_size)

        off = difference(model.encode_images(small), theirs(small))
        assert off < 0.05, f"the two sides do not compute the same: they differ by {off:.1%}"
        found.append(
            compare(
                title,
                lambda images=images: model.encode_images(images),
                lambda images=images: theirs(images),
                rounds=rounds,
                warmups=0,  # the comparison above was one
                limit=reached.bound(operations=operations(made, sizes)),
                target=target,
                sizes=sizes,
                layers=made.vision_config.num_hidden_layers,
                difference=off,
            )
        )
    return found


def main() -> None:
    from same_weights import config

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, help="of the tower, each of its true size; all 27 by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=[*CASES], help="one of the cases")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    reached = ceilings("cpu", [torch.bfloat16])
    made = config(vision_layers=options.layers, text_layers=1, vocabulary=304)
    names = [options.only] if options.only else [*CASES]
    what = f"vision-{options.only}" if options.only else "vision"
    report(what, cases(made, names, reached, rounds=options.rounds), reached=reached, save=not options.no_save)


if __name__ == "__main__":
    main()
