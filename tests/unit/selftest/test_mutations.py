"""Every invariant is seen to fail once: break a model in one way, and the check that guards against it must say no."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tokenizers import AddedToken

import idefics.engine.prefill
import idefics.model.decoder
import idefics.model.idefics2
import idefics.model.perceiver
import idefics.model.siglip
import idefics.model.vision_encoder
import invariants
from fakes import tiny_config, tiny_idefics, tiny_model
from idefics.engine import sampling
from idefics.engine.blocks import BlockPool
from idefics.engine.paged_cache import PagedPass
from idefics.engine.static_cache import StaticKVCache
from idefics.linears.packed import PackedLinear
from idefics.linears.packing import pack
from idefics.model.decoder import Decoder
from idefics.model.idefics2 import Idefics2
from idefics.model.layers.attention import attention
from idefics.model.sight import Placed
from idefics.processor.idefics2 import Idefics2Processor
from idefics.selftest import answering, answers, decoding, files, sight, vision, weights
from mutations import registry

BROKEN, caught_by = registry()


def _without_segments(q, k, v, *, q_lengths, k_lengths, backend):  # noqa: ARG001
    """Attention in which everything packed sees everything."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return attention(q, k, v, mask_BTS=None, causal=False, backend=backend)[0].transpose(0, 1)


@caught_by(vision.images_isolated, vision.pixel_padding_inert, vision.split_parity)
def perceiver_mask_dropped(_, patch):
    patch.setattr(idefics.model.perceiver, "segmented_attention", _without_segments)


@caught_by(vision.images_isolated, vision.pixel_padding_inert, vision.split_parity)
def vision_mask_dropped(_, patch):
    patch.setattr(idefics.model.vision_encoder, "segmented_attention", _without_segments)


@caught_by(decoding.batch_equals_single, decoding.positions_count_tokens)
def position_shifted_by_one(_, patch):
    """The first appended token takes the place of the prompt's last."""
    extend = idefics.engine.prefill.Prefill.extend

    def shifted(self, tokens_RT):
        self._lengths_R = self._lengths_R + 1
        out = extend(self, tokens_RT)
        self._lengths_R = self._lengths_R - 1
        return out

    patch.setattr(idefics.engine.prefill.Prefill, "extend", shifted)


@caught_by(decoding.cache_equals_full, vision.images_isolated)
def causal_mask_dropped(_, patch):
    def everything(*, queries, past, window, key_mask_BS, device):  # noqa: ARG001
        return torch.ones(1, queries, past + queries, dtype=torch.bool, device=device)

    patch.setattr(idefics.model.cache, "causal_mask", everything)


@caught_by(decoding.window_respected)
def sliding_window_ignored(_, patch):
    mask = idefics.model.cache.causal_mask
    patch.setattr(idefics.model.cache, "causal_mask", lambda **given: mask(**{**given, "window": None}))


@caught_by(decoding.window_respected)
def sliding_window_one_too_long(_, patch):
    mask = idefics.model.cache.causal_mask
    patch.setattr(idefics.model.cache, "causal_mask", lambda **given: mask(**{**given, "window": given["window"] + 1}))


@caught_by(decoding.window_respected, decoding.cache_equals_full)
def sliding_window_one_too_short_when_cached(_, patch):
    mask = idefics.model.cache.causal_mask

    def short(**given):
        return mask(**{**given, "window": given["window"] - (given["past"] > 0)})

    patch.setattr(idefics.model.cache, "causal_mask", short)


@caught_by(decoding.batch_equals_single, decoding.positions_count_tokens)
def left_padding_counted_in_positions(_, patch):
    def arange(mask_BT):
        return torch.arange(mask_BT.shape[1], device=mask_BT.device).expand(mask_BT.shape)

    patch.setattr(idefics.engine.prefill, "positions", arange)


@caught_by(decoding.batch_equals_single, decoding.padding_inert)
def padding_seen(_, patch):
    forward = Decoder.forward
    patch.setattr(Decoder, "forward", lambda self, x, **given: forward(self, x, **{**given, "key_mask_BS": None}))


@caught_by(decoding.cache_equals_full, decoding.batch_equals_single)
def cache_offset_off_by_one(_, patch):
    append = StaticKVCache.append

    def late(self, layer, k_BGTK, v_BGTK):
        keys, values = append(self, layer, k_BGTK, v_BGTK)
        if self._length == 0:
            return keys, values
        old = slice(0, self._length)
        keys, values = keys.clone(), values.clone()
        keys[:, :, old], values[:, :, old] = keys[:, :, old].roll(1, 2), values[:, :, old].roll(1, 2)
        keys[:, :, 0], values[:, :, 0] = 0, 0
        return keys, values

    patch.setattr(StaticKVCache, "append", late)


@caught_by(answers.greedy_repeatable)
def single_new_tokens_are_placed_one_too_far(_, patch):
    angles = idefics.model.decoder.rotary_angles
    shift = lambda places: places + (places.shape[1] == 1)  # noqa: E731
    patch.setattr(idefics.model.decoder, "rotary_angles", lambda places, **sizes: angles(shift(places), **sizes))


@caught_by(answers.greedy_repeatable)
def new_tokens_see_only_themselves(_, patch):
    groups = PagedPass._groups

    def blind(self, singles):
        found = groups(self, singles)
        for group in found:
            group.mask_R1S[..., :-1] &= ~group.mask_R1S[..., 1:].clone()
        return found

    patch.setattr(PagedPass, "_groups", blind)


@caught_by(answers.greedy_repeatable)
def found_blocks_hold_something_else(_, patch):
    """The second time the prompt's blocks are found in the cache, but they are all the first."""
    find = BlockPool.find

    def first_only(self, digests):
        found = find(self, digests)
        same = found[:1] * len(found)
        for block in same[1:]:
            self._users[block] += 1
        return same

    patch.setattr(BlockPool, "find", first_only)


@caught_by(vision.swapped_images, vision.images_isolated)
def images_placed_in_wrong_order(_, patch):
    sight = Idefics2.sight
    patch.setattr(Idefics2, "sight", lambda self, projected, at: sight(self, tuple(part.flip(0) for part in projected), at))


@caught_by(vision.swapped_images)
def latents_placed_in_wrong_order(_, patch):
    sight = Idefics2.sight
    patch.setattr(Idefics2, "sight", lambda self, projected, at: sight(self, tuple(part.flip(1) for part in projected), at))


@caught_by(vision.swapped_images)
def image_tokens_draw_on_the_latent_before(_, patch):
    sources = Idefics2.sources

    def late(self, inputs):
        found = sources(self, inputs)
        return torch.where(found > 0, found - 1, found)

    patch.setattr(Idefics2, "sources", late)


@caught_by(vision.swapped_images, vision.pixel_padding_inert)
def images_encoded_in_wrong_order(loaded, patch):
    encode = loaded.model.encode_images
    patch.setattr(loaded.model, "encode_images", lambda images: encode(images[::-1]))


@caught_by(vision.patch_positions)
def patch_positions_in_bfloat16(loaded, patch):
    loaded.model = tiny_model(tiny_config(side=70), dtype=loaded.model.dtype)  # small tables survive it

    def rounded(h, w, *, side):
        boundaries = torch.arange(1 / side, 1.0, 1 / side, dtype=torch.bfloat16)
        rows, columns = (torch.bucketize((torch.arange(n) / n).bfloat16(), boundaries, right=True) for n in (h, w))
        return (rows[:, None] * side + columns).flatten()

    patch.setattr(idefics.model.siglip, "patch_position_ids", rounded)


@caught_by(vision.patch_positions)
def patch_positions_column_by_column(_, patch):
    rule = idefics.model.siglip.patch_position_ids
    patch.setattr(
        idefics.model.siglip, "patch_position_ids", lambda h, w, *, side: rule(h, w, side=side).view(h, w).t().flatten()
    )


@caught_by(vision.partial_patches_ignored)
def partial_patches_fill_a_patch(_, patch):
    whole = idefics.model.idefics2.patchify

    def padded(image_CHW, *, patch):
        h, w = (-edge % patch for edge in image_CHW.shape[-2:])
        return whole(torch.nn.functional.pad(image_CHW, (0, w, 0, h)), patch=patch)

    patch.setattr(idefics.model.idefics2, "patchify", padded)


@caught_by(weights.weights_finite, answers.logits_finite, decoding.batch_equals_single, vision.images_isolated)
def nan_weight(loaded, _):
    loaded.model.vision_model.encoder.layers[0].mlp.fc1.weight.data[2, 3] = torch.nan
    loaded.model.text_model.layers[0].self_attn.q_proj.weight.data[0, 0] = torch.nan


@caught_by(weights.weights_arrived)
def half_a_weight_never_arrived(loaded, _):
    weight = loaded.model.text_model.layers[1].mlp.down_proj.weight.data
    weight[len(weight) // 2 :] = 0


@caught_by(weights.packed_equals_plain)
def packed_layers_forget_what_follows_them(loaded, patch):
    pack(loaded.model)
    product = PackedLinear._product
    patch.setattr(PackedLinear, "_product", lambda self, x: product(self, x).relu())


@caught_by(weights.packed_equals_plain)
def packed_layers_are_joined_in_wrong_order(loaded, patch):
    product = PackedLinear._product

    def swapped(self, x):
        return torch.cat(product(self, x).split(self.sizes, dim=-1)[::-1], dim=-1)

    pack(loaded.model)
    patch.setattr(PackedLinear, "_product", swapped)


@caught_by(answers.depends_on_image)
def image_path_dead(loaded, _):
    loaded.model.connector.modality_projection.down_proj.weight.data.zero_()


@caught_by(answers.depends_on_image, answers.depends_on_order, vision.swapped_images)
def latents_ignored(_, patch):
    patch.setattr(Placed, "into", lambda _, x_BTD: x_BTD)


@caught_by(files.parts_agree, decoding.batch_equals_single, vision.split_parity)
def image_seq_len_mismatch(loaded, _):
    loaded.processor.image_seq_len += 1


@caught_by(files.parts_agree)
def image_token_mismatch(loaded, _):
    loaded.model.config = dataclasses.replace(loaded.model.config, image_token_id=5)


@caught_by(files.ids_in_range)
def token_beyond_the_embedding(loaded, _):
    """What adding `<end_of_utterance>` to a base model does."""
    base = tiny_idefics(end_of_utterance=False)
    loaded.model, loaded.processor = base.model, base.processor
    loaded.processor.tokenizer.backend.add_special_tokens([AddedToken("<end_of_utterance>", normalized=False)])


@caught_by(files.ids_in_range)
def generation_ids_beyond_the_embedding(loaded, _):
    loaded.defaults["bad_words_ids"] = [[32000], [32001]]


@caught_by(files.parts_agree)
def generation_options_unusable(loaded, _):
    loaded.defaults.update(num_beams=2, do_sample=True)


@caught_by(files.special_tokens_round_trip)
def special_token_split(loaded, patch):
    tokenizer = loaded.processor.tokenizer
    encode = tokenizer.encode
    patch.setattr(tokenizer, "encode", lambda text, **given: encode(text.replace("</s>", "< /s>"), **given))


@caught_by(files.segments_start_anew)
def space_after_an_image(loaded, patch):
    """What the processor of transformers 5 does."""
    tokenizer = loaded.processor.tokenizer
    encode, fake = tokenizer.encode, loaded.processor.fake_image_token
    patch.setattr(tokenizer, "encode", lambda text, **given: encode(text.replace(fake, fake + " "), **given))


@caught_by(files.chat_template_renders)
def template_that_drops_images(loaded, _):
    loaded.processor.chat_template = "{% for m in messages %}{{ m.content[0].text or '' }}{% endfor %}"


@caught_by(files.chat_template_renders)
def template_without_generation_prompt(loaded, _):
    loaded.processor.chat_template = loaded.processor.chat_template.replace("Assistant:", "")


@caught_by(vision.split_parity)
def split_moves_pixels_only(_, patch):
    """What the reference does with `do_image_splitting` per call."""
    expanded = Idefics2Processor._expanded
    patch.setattr(
        Idefics2Processor,
        "_expanded",
        lambda self, text, worker: expanded(self, text, worker.with_options(do_image_splitting=False)),
    )


@caught_by(vision.split_parity)
def quarters_in_wrong_order(_, patch):
    import idefics.processor.image as image

    boxes = image.sub_image_boxes

    def by_column(width, height, *, do_image_splitting):
        found = boxes(width, height, do_image_splitting=do_image_splitting)
        return [found[i] for i in (0, 2, 1, 3, 4)] if do_image_splitting else found

    patch.setattr(image, "sub_image_boxes", by_column)


@caught_by(answers.greedy_repeatable)
def greedy_that_draws(_, patch):
    honest = sampling.pick
    patch.setattr(
        sampling, "pick", lambda logits, allowed, draws: honest(logits, allowed + 9 * torch.randn_like(logits), draws)
    )


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("mutation", "check"), BROKEN, ids=[f"{m.__name__}-{c.__name__}" for m, c in BROKEN])
def test_mutation_is_caught(mutation, check, dtype, backend, monkeypatch):
    loaded = tiny_idefics(dtype=dtype, backend=backend, std=0.2)
    mutation(loaded, monkeypatch)
    assert not invariants.result(check, loaded).passed


def test_every_check_is_seen_to_fail():
    from idefics.selftest import CHECKS

    here = {check.__name__ for _, check in BROKEN}
    elsewhere = {*sight.__all__, *answering.__all__}  # test_sight_checks.py, test_answering_checks.py
    assert {check.__name__ for check in CHECKS.values()} - elsewhere == here
