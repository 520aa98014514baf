"""Checks of images: pixels, patches, positions and latents.

Letters: N images, L latents, D hidden size, C x H x W pixels, P patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from idefics.inputs import pixels_of
from idefics.model.nearness import distance
from idefics.selftest.checks import Check, inapplicable, judge
from idefics.selftest.subject import Subject

__all__ = [
    "images_isolated",
    "partial_patches_ignored",
    "patch_positions",
    "pixel_padding_inert",
    "split_parity",
    "swapped_images",
]

PUBLISHED_SIDE = 70
# Where float32 lands just below the cell in which patch i of n exactly begins: n -> patches that get the cell before.
PUBLISHED_EXCEPTIONS: Mapping[int, tuple[int, ...]] = {
    25: (5, 10, 15, 20), 49: (7, 14, 35, 42), 50: (5, 10, 15, 20, 30, 40), 55: (11, 22, 33, 44), 58: (29,),
}  # fmt: skip


def table_cells(n: int, *, side: int) -> list[int]:
    """The table's cell of each of n patches along one edge, as transformers 4.40 computed it for the published models.

    For the published side of 70 this is a constant: integer arithmetic and the places where float32 departs from it.
    Other sides follow the same formula in float32 on the CPU.
    """
    if side == PUBLISHED_SIDE:
        return [i * side // n - (i in PUBLISHED_EXCEPTIONS.get(n, ())) for i in range(n)]
    boundaries = torch.arange(1 / side, 1.0, 1 / side, dtype=torch.float32)
    step = float(torch.tensor(1.0) / n)
    found: list[int] = torch.bucketize(torch.arange(0, 1 - 1e-6, step, dtype=torch.float32), boundaries, right=True).tolist()
    return found


def patch_positions(subject: Subject) -> Check:
    """Rows of the position table that the model looks up, for strips of every length and a few grids."""
    name = "patch positions follow the published rule"
    if not subject.any_size:
        return inapplicable(name, "images of one size have one table of positions")
    vision = subject.config.vision_config
    side, seen = vision.patches_per_side, []

    def spy(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].detach().cpu())

    grids = [(n, 1) for n in range(1, side + 1)] + [(1, n) for n in range(1, side + 1)]
    grids += [(h, w) for h, w in ((2, 3), (5, 4), (side, 2), (3, side)) if max(h, w) <= side]
    patches, values = sum(h * w for h, w in grids), vision.num_channels * vision.patch_size**2
    embeddings = subject.model.get_submodule("vision_model.embeddings")
    table = embeddings.get_submodule("position_embedding")
    handle = table.register_forward_pre_hook(spy)
    try:
        device = table.get_parameter("weight").device
        embeddings(torch.zeros(patches, values, dtype=subject.model.dtype, device=device), grids)
    finally:
        handle.remove()
    cells = {n: table_cells(n, side=side) for n in range(1, side + 1)}
    expected = torch.tensor([row * side + column for h, w in grids for row in cells[h] for column in cells[w]])
    wrong = int((seen[0] != expected).sum()) if seen and seen[0].shape == expected.shape else patches
    return Check(
        name=name,
        passed=wrong == 0,
        measured=f"{wrong} of {patches} patches wrong",
        allowed="0",
        explanation=f"strips of 1 to {side} patches, in {subject.model.dtype}"
        + ("" if wrong == 0 else "; patches are told wrong places (computed in a 16-bit dtype?): fine detail and text suffer"),
    )


def partial_patches_ignored(subject: Subject) -> Check:
    """Pixels that fill no whole patch change nothing."""
    if not subject.any_size:
        return inapplicable("partial patches are ignored", "images of one size fill whole patches")
    patch = subject.config.vision_config.patch_size
    image_CHW = subject.pixels[0]
    h, w = (edge // patch * patch for edge in image_CHW.shape[-2:])
    whole = image_CHW[:, :h, :w]
    filled = torch.nn.functional.pad(whole, (0, patch - 1, 0, patch - 1), value=7.0)
    if max(filled.shape[-2:]) > subject.config.vision_config.image_size + patch - 1:
        filled = whole
    measured = distance(subject.model.encode_images([filled]), subject.model.encode_images([whole]))
    return judge(
        "partial patches are ignored",
        measured,
        subject.least,
        holds="an image cropped to whole patches, and with a rest at the right and bottom",
        broken="pixels beyond the last whole patch leak into the latents",
    )


def pixel_padding_inert(subject: Subject) -> Check:
    """Images padded to one size, cropped by their mask, are the images; and a batch's latents are each image's alone."""
    wrong = _changed_by_padding(subject) if subject.any_size else 0
    together = subject.model.encode_images(subject.pixels)
    measured = max(distance(together[i : i + 1], alone) for i, alone in enumerate(subject.alone))
    return judge(
        "pixel padding is inert",
        measured if wrong == 0 else float("inf"),
        subject.allowed,
        holds="padded pixels cropped by their mask, and latents of three images together and alone",
        broken=f"{wrong} image(s) changed by padding" if wrong else "an image's latents depend on those beside it",
    )


def _changed_by_padding(subject: Subject) -> int:
    """Images of a batch whose padded pixels or mask are not what they should be."""
    large, small, other = subject.pictures
    texts, rows = ["{i}", "No picture here.", "{i}{i}"], [[small], [], [large, other]]
    prompts = [text.replace("{i}", subject.processor.image_token) for text in texts]
    padded = subject.small.adjusted(split=False)(text=prompts, images=rows, padding=True, return_tensors="pt")
    if "pixel_attention_mask" not in padded:  # a checkpoint whose images are not padded
        return 0
    unpadded = map(pixels_of, subject.inputs(texts, rows).images_CHW)
    wrong = 0
    for row, pixels_NCHW, mask_NHW in zip(rows, padded["pixel_values"], padded["pixel_attention_mask"], strict=True):
        for n, (pixels_CHW, mask_HW) in enumerate(zip(pixels_NCHW, mask_NHW, strict=True)):
            if n >= len(row):
                wrong += int(mask_HW.any())
                continue
            h, w = int(mask_HW.any(1).sum()), int(mask_HW.any(0).sum())
            rest = pixels_CHW.clone()
            rest[:, :h, :w] = 0
            wrong += not (torch.equal(pixels_CHW[:, :h, :w], next(unpadded)) and not rest.any() and int(mask_HW.sum()) == h * w)
    return wrong


def images_isolated(subject: Subject) -> Check:
    """Other pixels in one image change neither another's latents nor hidden states before it."""
    a, b, c = subject.pixels
    before = subject.model.encode_images([a, b, c])
    after = subject.model.encode_images([a, -b, c])
    latents = max(distance(after[i], before[i]) for i in (0, 2))
    neighbour = distance(subject.model.encode_images([a, b, -c])[:2], before[:2])
    run = subject.runs[2]
    second = int((run.ids_T == subject.config.image_token_id).nonzero()[subject.processor.tokens_per_sub_image])
    changed = subject.run(2, torch.cat((subject.alone[0], after[1:2])))
    hidden = distance(changed.hidden_TD[:second], run.hidden_TD[:second])
    where = "latents of other images" if max(latents, neighbour) > hidden else "hidden states before the image"
    return judge(
        "images are isolated",
        max(latents, neighbour, hidden),
        subject.least,
        holds="latents and earlier hidden states while another image is inverted",
        broken=f"{where} change with an image they must not see (a mask is missing)",
    )


def swapped_images(subject: Subject) -> Check:
    """Latents come in the order of the images, and each image token is given its own."""
    a, b, _ = subject.pixels
    forth, back = subject.model.encode_images([a, b]), subject.model.encode_images([b, a])
    order = max(distance(back.flip(0), forth), distance(forth, torch.cat(subject.alone[:2])))
    name = "image tokens hold their own image's latents"
    if subject.crossed:
        return judge(
            name,
            order,
            subject.allowed,
            holds="two images in both orders and alone (tokens look at images apart from the text)",
            broken="latents change with the order of the images",
        )
    run, latents_NLD = subject.runs[2], subject.latents(2)
    assert latents_NLD is not None
    places_T = run.ids_T == subject.config.image_token_id
    merged = distance(run.embedded_TD[places_T], latents_NLD.flatten(0, 1).to(run.embedded_TD.dtype))
    text = distance(run.embedded_TD[~places_T], subject.model.text_model.embed_tokens(run.ids_T[~places_T]))
    misplaced = max(merged, text) > 0
    return judge(
        name,
        float("inf") if misplaced else order,
        subject.allowed,
        holds="two images in both orders and alone, and the decoder's inputs at every image token",
        broken="latents stand in wrong places" if misplaced else "latents change with the order of the images",
    )


def split_parity(subject: Subject) -> Check:
    """With splitting, five times the tokens, and the latents of the four quarters and the whole in that order."""
    name, holds = "splitting: tokens match sub-images", "five blocks of tokens; latents of the crops together and alone"
    if not subject.any_size:
        return inapplicable(name, "images of one size are never split")
    image = subject.pictures[0]
    inputs = subject.inputs(["{i}"], [[image]], split=True)
    length = type(subject.processor).tokens_of(subject.config)
    tokens = int((inputs.input_ids_BT == subject.config.image_token_id).sum())
    x, y = image.width // 2, image.height // 2
    boxes = ((0, 0, x, y), (x, 0, image.width, y), (0, y, x, image.height), (x, y, image.width, image.height))
    crops = [*(image.crop(box) for box in boxes), image]
    alone = subject.inputs([5 * "{i}"], [crops]).images_CHW
    if tokens != 5 * length or len(inputs.images_CHW) != 5:
        return Check(
            name=name,
            passed=False,
            measured=f"{tokens} tokens, {len(inputs.images_CHW)} sub-images",
            allowed=f"{5 * length} tokens, 5 sub-images",
            explanation="tokens and pixels of a split image do not belong together",
        )
    same = all(torch.equal(pixels_of(one), pixels_of(other)) for one, other in zip(inputs.images_CHW, alone, strict=True))
    pixels: list[Tensor] = [pixels_of(one.to(subject.device)) for one in inputs.images_CHW]
    together = subject.model.encode_images(pixels)
    measured = max(distance(together[i : i + 1], subject.model.encode_images([pixels[i]])) for i in range(5))
    return judge(
        name,
        measured if same else float("inf"),
        subject.allowed,
        holds=holds,
        broken="latents of sub-images depend on each other"
        if same
        else "sub-images are not top-left, top-right, bottom-left, bottom-right, whole",
    )
