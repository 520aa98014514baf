"""What must hold for every model and every backend, as assertions. `idefics verify` runs the same code.

    assert_cache_matches_full(idefics.load(folder))

Each function takes a loaded model and fails with what was measured, what is allowed and what it would do to answers.
`tests/unit/selftest/test_mutations.py` breaks a model in every way that is listed there and sees these fail. The last
functions take a model and inputs, and say which tokens see which image; `tests/unit/model/test_sight.py` breaks those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from idefics.api import Idefics
from idefics.engine.prefill import Prefill
from idefics.inputs import ModelInputs
from idefics.model.base import VisionLanguageModel
from idefics.model.logits import positions
from idefics.selftest import answers, decoding, files, vision
from idefics.selftest.checks import Check
from idefics.selftest.run import attempt
from idefics.selftest.subject import Subject
from idefics.weights.rename import RenameTable


def result(check: Callable[[Subject], Check], loaded: Idefics) -> Check:
    """One check of one model, on material of its own."""
    return attempt(check.__name__, check, Subject(loaded))


def assert_all_hold(loaded: Idefics, checks: Iterable[Callable[[Subject], Check]]) -> None:
    subject = Subject(loaded)
    failed = [found for found in (attempt(c.__name__, c, subject) for c in checks) if not found.passed]
    assert not failed, "\n".join(f"{c.name}: {c.measured}, allowed {c.allowed}: {c.explanation}" for c in failed)


def assert_batch_matches_single(loaded: Idefics) -> None:
    """Rows with no image, one and two answer together as each alone."""
    assert_all_hold(loaded, [decoding.batch_equals_single, decoding.positions_count_tokens])


def assert_cache_matches_full(loaded: Idefics) -> None:
    """A prompt in pieces, cut in text and inside an image, gives what it gives at once."""
    assert_all_hold(loaded, [decoding.cache_equals_full, decoding.window_respected, answers.greedy_repeatable])


def assert_padding_is_inert(loaded: Idefics) -> None:
    """Neither padded ids nor padded pixels nor partial patches change anything."""
    assert_all_hold(loaded, [decoding.padding_inert, vision.pixel_padding_inert, vision.partial_patches_ignored])


def assert_images_isolated(loaded: Idefics) -> None:
    """Images do not see each other, and their latents stand where their tokens are."""
    assert_all_hold(loaded, [vision.images_isolated, vision.swapped_images])


def assert_split_parity(loaded: Idefics) -> None:
    """With splitting, tokens and pixels move together."""
    assert_all_hold(loaded, [vision.split_parity])


def assert_image_matters(loaded: Idefics) -> None:
    """Another image, or another order of images, gives other logits."""
    assert_all_hold(loaded, [answers.depends_on_image, answers.depends_on_order])


def assert_files_agree(loaded: Idefics) -> None:
    """Tokenizer, processor, configs and template belong together."""
    names = ("ids_in_range", "parts_agree", "special_tokens_round_trip", "segments_start_anew", "chat_template_renders")
    assert_all_hold(loaded, [getattr(files, name) for name in names])


def assert_rename_is_bijective(table: RenameTable, published: Iterable[str], ours: Iterable[str]) -> None:
    """A table maps these published names onto these names of ours one to one, and back."""
    published, ours = list(published), list(ours)
    kept = [name for name in published if table.ours(name) is not None]
    mapped = [table.ours(name) for name in kept]
    assert len(set(mapped)) == len(mapped), "two published names meet in one of ours"
    assert set(mapped) == set(ours), f"not both ways: {sorted(map(str, set(mapped) ^ set(ours)))}"
    for name in ours:
        assert table.ours(table.published(name)) == name
    for name in kept:
        assert table.published(str(table.ours(name))) == name


def logits_of(model: VisionLanguageModel, inputs: ModelInputs) -> torch.Tensor:
    """Logits (B, T, V) of prompts, padded on either side, in one pass without cache."""
    model.check(inputs)
    mask_BT = inputs.attention_mask_BT.bool()
    with torch.inference_mode():
        hidden_BTD = model(
            inputs.input_ids_BT,
            positions_BT=positions(mask_BT),
            seen=model.see(inputs),
            key_mask_BS=None if bool(mask_BT.all()) else mask_BT,
        )
        return model.logits(hidden_BTD)


def assert_rows_are_alone(model: VisionLanguageModel, inputs: ModelInputs, *, atol: float = 1e-4) -> None:
    """A row's logits are the same whatever stands beside it in the batch."""
    together = logits_of(model, inputs)
    for row in range(len(inputs.input_ids_BT)):
        real = inputs.attention_mask_BT[row].bool()
        alone = logits_of(model, _cut(inputs.row(row), real))
        torch.testing.assert_close(together[row, real], alone[0], atol=atol, rtol=0, msg=lambda m, r=row: f"row {r}: {m}")


def assert_steps_match_whole(model: VisionLanguageModel, inputs: ModelInputs, *, atol: float = 1e-4) -> None:
    """Prompts continued through the cache, by one token and then by three, give what one pass over all gives."""
    rows = len(inputs.input_ids_BT)
    new_BT = torch.arange(4)[None] + torch.arange(rows)[:, None] + 5
    with torch.inference_mode():
        prefill = Prefill(model, inputs, rows=range(rows), rooms=[4] * rows)
        steps = [prefill.logits_RV[:, None], prefill.step(new_BT[:, :1])[:, None], prefill.extend(new_BT[:, 1:])]
    found_B5V = torch.cat(steps, dim=1)
    for row in range(rows):
        one = _cut(inputs.row(row), inputs.attention_mask_BT[row].bool())
        ids = torch.cat((one.input_ids_BT, new_BT[row : row + 1]), dim=1)
        seen = one.seen_BT
        if seen is not None:
            seen = torch.cat((seen, seen[:, -1:].expand(-1, 4)), dim=1)
        whole = replace(one, input_ids_BT=ids, attention_mask_BT=torch.ones_like(ids), seen_BT=seen)
        expected = logits_of(model, whole)[0, -5:]
        torch.testing.assert_close(found_B5V[row], expected, atol=atol, rtol=0, msg=lambda m, r=row: f"row {r}: {m}")


def assert_images_unheard_until_seen(model: VisionLanguageModel, inputs: ModelInputs) -> None:
    """Another image in the place of one changes no bit of the logits of other rows, nor of the tokens before it is seen."""
    assert inputs.seen_BT is not None
    before = logits_of(model, inputs)
    at = 0
    for row, count in enumerate(inputs.images_per_row):
        for image in range(count):
            pixels = list(inputs.images_CHW)
            pixels[at] = pixels[at].flip(-1) - 1
            after = logits_of(model, replace(inputs, images_CHW=tuple(pixels)))
            real = inputs.attention_mask_BT.bool()
            first = int((inputs.seen_BT[row] == image).long().argmax())
            may_hear = torch.zeros_like(real)
            may_hear[row, first:] = True
            what = f"image {image + 1} of row {row + 1}"
            deaf = real & ~may_hear
            assert torch.equal(after[deaf], before[deaf]), f"{what} is heard by tokens that may not see it"
            assert not torch.equal(after[real & may_hear], before[real & may_hear]), f"{what} is heard by nobody"
            at += 1


def assert_blind_tokens_get_nothing(model: VisionLanguageModel, inputs: ModelInputs) -> None:
    """What comes out of every cross-attention is exactly zero for tokens that see no image, and for no other."""
    assert inputs.seen_BT is not None
    blocks = [module for name, module in model.named_modules() if name.endswith(".cross_attn")]
    assert blocks, "there is no cross-attention"
    found: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, out: found.append(out)) for block in blocks]
    logits_of(model, inputs)
    for handle in handles:
        handle.remove()
    assert len(found) == (len(blocks) if inputs.images_CHW else 0)
    for out_BTD in found:
        assert torch.equal(out_BTD.any(-1), inputs.seen_BT >= 0), "cross-attention of tokens that see no image is not zero"


def _cut(inputs: ModelInputs, real: torch.Tensor) -> ModelInputs:
    """One row without its padding."""
    return replace(
        inputs,
        input_ids_BT=inputs.input_ids_BT[:, real],
        attention_mask_BT=inputs.attention_mask_BT[:, real],
        seen_BT=None if inputs.seen_BT is None else inputs.seen_BT[:, real],
    )
