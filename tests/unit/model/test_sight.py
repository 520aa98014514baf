"""Who sees which image: the invariants on models of the first generation, and every way to break them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gated
import invariants
from gated import BOS, EDGES, block, model_inputs, pictures, random_batch, tiny_config, tiny_model
from idefics.engine import prefill
from idefics.engine.prefill import remaining
from idefics.errors import InputError, NumericsError
from idefics.model import gated_cross_attention, idefics1, peaks
from idefics.model.gated_cross_attention import Crossed, Routes, View, route
from idefics.model.idefics1 import Idefics1, global_images
from idefics.model.sight import Placed

VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "no resampler, gates per channel": {"use_resampler": False, "alpha_type": "vector"},
    "a block before every layer": {"cross_layer_interval": 1, "qk_layer_norms": False},
}
INVARIANTS = [
    invariants.assert_rows_are_alone,
    invariants.assert_steps_match_whole,
    invariants.assert_images_unheard_until_seen,
    invariants.assert_blind_tokens_get_nothing,
]


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("holds", INVARIANTS, ids=lambda f: f.__name__)
def test_invariants(holds: Callable[..., None], variant: str, backend: Any) -> None:
    model = tiny_model(backend=backend, seed=3, **VARIANTS[variant])
    holds(model, model_inputs(*EDGES["mixed image counts"]))
    holds(model, model_inputs(*EDGES["packed documents"]))


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_edges(edge: str, side: str) -> None:
    model, inputs = tiny_model(seed=4), model_inputs(*EDGES[edge], side=side)
    for holds in INVARIANTS:
        if holds is not invariants.assert_images_unheard_until_seen or inputs.images_CHW:
            holds(model, inputs)


def _leak(image_BT: torch.Tensor, *, images: int) -> Routes:
    """As transformers#26428 had it: tokens before the first image look anyway."""
    return route(image_BT.clamp(min=0), images=images)


def _shuffled(image_BT: torch.Tensor, *, images: int) -> Routes:
    """Tokens are given to the images in another order than the images' own."""
    routes = route(image_BT, images=images)
    return dataclasses.replace(routes, lengths=routes.lengths[::-1])


def _all_at_once(self: Any, x_BTD: torch.Tensor, view: View) -> torch.Tensor:
    """The mask over images is dropped: tokens that see one see all."""
    tokens_P = view.routes.tokens_P
    one = Routes(tokens_P=tokens_P, lengths=[len(tokens_P)], images=None)
    return HONEST_FORWARD(self, x_BTD, View(view.keys_NLHK.flatten(0, 1)[None], view.values_NLHK.flatten(0, 1)[None], one))


def _first_row_for_all(model: Idefics1, projected: Any, source_R: torch.Tensor) -> Any:
    return HONEST_REMAINING(model, projected, source_R[:1].expand_as(source_R))


def _not_counted_over_rows(seen_BT: torch.Tensor, images_per_row: Any) -> torch.Tensor:  # noqa: ARG001
    return seen_BT


HONEST_FORWARD = gated_cross_attention.CrossAttention.forward
HONEST_REMAINING = remaining
MUTATIONS: list[tuple[Any, str, Callable[..., Any], Callable[..., None]]] = [
    (idefics1, "route", _leak, invariants.assert_blind_tokens_get_nothing),
    (idefics1, "route", _leak, invariants.assert_images_unheard_until_seen),
    (idefics1, "route", _shuffled, invariants.assert_images_unheard_until_seen),
    (gated_cross_attention.CrossAttention, "forward", _all_at_once, invariants.assert_images_unheard_until_seen),
    (gated_cross_attention.CrossAttention, "forward", _all_at_once, invariants.assert_rows_are_alone),
    (idefics1, "global_images", _not_counted_over_rows, invariants.assert_rows_are_alone),
    (prefill, "remaining", _first_row_for_all, invariants.assert_steps_match_whole),
    (prefill, "remaining", lambda *_: None, invariants.assert_steps_match_whole),
]


@pytest.mark.parametrize(("where", "name", "broken", "notices"), MUTATIONS, ids=lambda v: getattr(v, "__name__", None))
def test_what_breaks_them_is_seen(
    where: Any, name: str, broken: Callable[..., Any], notices: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(AssertionError):
        notices(tiny_model(seed=3), model_inputs(*EDGES["mixed image counts"]))


def test_routes() -> None:
    routes = route(torch.tensor([[-1, 2, 0], [2, -1, 2]]), images=4)
    assert routes.tokens_P.tolist() == [2, 1, 3, 5]
    assert routes.lengths == [1, 3]
    assert routes.images is not None
    assert routes.images.tolist() == [0, 2]
    assert route(torch.tensor([[1, 0]]), images=2).images is None
    assert not len(route(torch.tensor([[-1]]), images=1).tokens_P)


def test_images_are_counted_over_the_batch() -> None:
    assert global_images(torch.tensor([[0, 1], [-1, -1], [-1, 0]]), (2, 0, 1)).tolist() == [[0, 1], [-1, -1], [-1, 2]]


def test_only_the_last_seen_image_is_kept_for_answers() -> None:
    model = tiny_model()
    inputs = model_inputs(*EDGES["mixed image counts"])
    with torch.inference_mode():
        projected = model.project(model.encode_images(inputs.images_CHW))
        last_B = model.sources(inputs)[:, -1]
        kept = remaining(model, projected, last_B[[0, 0, 1, 3]])
        assert remaining(model, projected, last_B[[1]]) is None
    assert isinstance(kept, Crossed)
    assert [len(k) for k in kept.keys] == [2, 2]
    assert kept.image_BT.tolist() == [[0], [0], [-1], [1]]
    assert torch.equal(kept.keys[0][1], projected[0][last_B[3]])


def test_the_sight_of_another_family_is_our_own_bug() -> None:
    model, inputs = tiny_model(), model_inputs([[BOS, 5, 6]], [[]])
    sight = Placed(torch.zeros(1, 32), torch.tensor([[False, True, False]]))
    with pytest.raises(AssertionError, match="another family"):
        model(inputs.input_ids_BT, positions_BT=torch.arange(3)[None], seen=sight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seen_BT": torch.tensor([[0, 0, 2]])}, r"prompt 1 looks at image 3 but has 2 image\(s\)"),
        ({"seen_BT": None}, "nothing says which token sees which"),
        ({"images_CHW": (), "images_per_row": (0,)}, r"prompt 1 looks at image 2 but has 0 image\(s\)"),
        ({"input_ids_BT": torch.tensor([[1, 2, gated.VOCAB]])}, f"token id {gated.VOCAB} is outside"),
    ],
)
def test_prompts_that_do_not_fit_their_images(change: dict[str, Any], message: str) -> None:
    inputs = dataclasses.replace(
        model_inputs([[BOS, 5, 6]], [pictures(2)]), **{"seen_BT": torch.tensor([[-1, 0, 1]]), **change}
    )
    with pytest.raises(InputError, match=message):
        tiny_model().check(inputs)


def test_images_of_another_size_are_refused() -> None:
    inputs = model_inputs([[BOS, *block(1), 5]], [pictures(1)])
    for changes, side, message in (
        ({}, 30, "an image of 30x28 pixels; this model takes 28x28, and others with image_size= at idefics.load or"),
        ({"interpolated": True}, 13, "an image of 13x28 pixels; .* no image smaller than a patch of 14x14"),
        ({"interpolated": True}, 56, "takes 28x28 and no others: without a resampler its decoder looks at 5 features"),
    ):
        other = dataclasses.replace(inputs, images_CHW=(torch.zeros(3, 28, side),), **changes)
        with pytest.raises(InputError, match=message):
            tiny_model(use_resampler=side != 56).check(other)
    with pytest.raises(InputError, match="no images"):
        tiny_model().encode_images([])


def test_images_in_groups_are_images_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny_model(), pictures(5)
    with torch.inference_mode():
        expected = model.encode_images(images)
        monkeypatch.setattr(peaks, "VISION_BYTES", 9 * model.encoding_bytes(images[0]) // 4)
        sizes: list[int] = []
        model.vision_model.register_forward_hook(lambda _, __, out: sizes.append(len(out)))
        torch.testing.assert_close(model.encode_images(images), expected)
    assert sizes == [2, 2, 1]


def test_gradients_reach_every_parameter() -> None:
    model, inputs = tiny_model(), model_inputs(*random_batch(2, 3))
    hidden = model(inputs.input_ids_BT, positions_BT=torch.arange(inputs.input_ids_BT.shape[1])[None], seen=model.see(inputs))
    model.logits(hidden).square().mean().backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    # The tower's last norm is for its pooled output; a constant added to every key changes no softmax.
    assert [n for n in silent if not n.endswith("k_proj.bias") and ".post_layernorm." not in n] == []


def test_overflow_is_named_not_decoded() -> None:
    """The numbers of the largest model do not fit float16: NaN logits are an error that says so, never an answer."""
    from idefics.engine.engine import Engine
    from idefics.engine.sampling_params import SamplingParams
    from idefics.engine.scoring import score_continuations

    model = tiny_model(dtype=torch.float16)
    with torch.no_grad():
        model.text_model.gated_cross_attn_layers[1].mlp.down_proj.weight.mul_(3e4)
    inputs = model_inputs([[BOS, *block(1), 5, 6]], [[image.half() for image in pictures(1)]])
    for params in (SamplingParams(max_new_tokens=2), SamplingParams(max_new_tokens=2, num_beams=2)):
        with pytest.raises(NumericsError, match="NaN or infinite"):
            Engine(model).generate(inputs, [params])
    with pytest.raises(NumericsError, match="NaN or infinite"):
        score_continuations(model, inputs, [[*inputs.input_ids_BT[0].tolist(), 7]])


def test_added_ids_have_tables_of_their_own() -> None:
    model = tiny_model(additional_vocab_size=3)
    table, head = model.text_model.embed_tokens, model.lm_head
    assert (table.weight.shape[0], table.additional_embedding.weight.shape[0]) == (97, 3)
    ids = torch.tensor([[5, 96, 97, 99]])
    whole = torch.cat((table.weight, table.additional_embedding.weight))
    assert torch.equal(table(ids), whole[ids])
    hidden = torch.randn(2, 32)
    torch.testing.assert_close(head(hidden), hidden @ torch.cat((head.weight, head.additional_fc.weight)).T)
    plain = tiny_model(additional_vocab_size=0)
    assert plain.text_model.embed_tokens.additional_embedding is None
    assert plain.lm_head.weight.shape[0] == tiny_config().text_config.vocab_size


def test_prompts_whose_images_are_missing() -> None:
    inputs = model_inputs([[BOS, 5, 6], [BOS, *block(2), 7]], [[], []])
    for seen_BT in (None, torch.full_like(inputs.input_ids_BT, -1)):
        with pytest.raises(InputError, match=r"prompt 2 holds 2 image token\(s\) but no token sees an image"):
            tiny_model().check(dataclasses.replace(inputs, seen_BT=seen_BT))
    for added in (0, 1):  # a model of text has no such id: it is a word like another
        tiny_model(additional_vocab_size=added).check(dataclasses.replace(inputs, seen_BT=None))
    empty = model_inputs([[BOS]], [pictures(1)]).row(0)
    none = {"input_ids_BT": empty.input_ids_BT[:, :0], "attention_mask_BT": empty.attention_mask_BT[:, :0]}
    with pytest.raises(InputError, match="empty"):
        tiny_model().check(dataclasses.replace(empty, **none, seen_BT=none["input_ids_BT"]))
