from __future__ import annotations

import math
import random

import pytest
import torch
from torch.nn import functional as F

from fakes import LATENTS, PATCH, tiny_config, tiny_model
from idefics.config.parts import ACTIVATIONS as CONFIGURABLE
from idefics.errors import InputError
from idefics.inputs import ModelInputs
from idefics.model.layers import norm
from idefics.model.layers.activation import ACTIVATIONS
from idefics.model.layers.norm import RMSNorm, normalised
from idefics.model.layers.rope import rotary_angles, rotate
from idefics.model.sight import Placed
from idefics.model.siglip import patch_position_ids
from idefics.model.vision_encoder import PatchEmbedding, patchify
from reference_merge import merged

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_rotation_is_the_complex_product():
    x = torch.randn(2, 3, 5, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 100, 3, 0, 31999]])
    cos, sin = rotary_angles(positions, head_dim=8, theta=10000.0, dtype=torch.float32)
    found = rotate(x, cos, sin)
    turned = torch.polar(torch.ones(4), torch.zeros(4))
    for b in range(2):
        for t in range(5):
            angles = torch.tensor([positions[b, t] / 10000.0 ** (2 * i / 8) for i in range(4)], dtype=torch.float64)
            turned = torch.polar(torch.ones(4, dtype=torch.float64), angles)
            expected = torch.complex(x[b, :, t, :4].double(), x[b, :, t, 4:].double()) * turned
            torch.testing.assert_close(
                found[b, :, t].double(), torch.cat((expected.real, expected.imag), -1), atol=2e-3, rtol=1e-3
            )


def test_only_the_distance_between_positions_counts():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(at_q, at_k):
        turned = [
            rotate(x, *rotary_angles(torch.tensor([[at]]), head_dim=16, theta=10000.0, dtype=torch.float32))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert math.isclose(score(3, 1), score(1003, 1001), abs_tol=1e-3)
    assert not math.isclose(score(3, 1), score(4, 1), abs_tol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_angles_are_rounded_once(dtype):
    """Positions above 256 do not exist in bfloat16: angles must be made in float32."""
    positions = torch.tensor([[255, 257, 4097]])
    exact = rotary_angles(positions, head_dim=8, theta=10000.0, dtype=torch.float32)
    for found, expected in zip(rotary_angles(positions, head_dim=8, theta=10000.0, dtype=dtype), exact, strict=True):
        assert torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype):
    norm = RMSNorm(16, eps=1e-5).to(dtype)
    norm.weight.data.uniform_(0.5, 1.5)
    x = (torch.randn(3, 16) * 50).to(dtype)
    wide = x.double()
    expected = norm.weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    found = norm(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    if dtype == torch.float32:
        torch.testing.assert_close(found, F.rms_norm(x, (16,), norm.weight, eps=1e-5))


def test_rms_norm_of_large_float16_does_not_overflow():
    norm = RMSNorm(4, eps=1e-5).half()
    assert torch.isfinite(norm(torch.full((4,), 60000.0, dtype=torch.float16))).all()


def test_every_configurable_activation_is_there():
    assert set(ACTIVATIONS) == set(CONFIGURABLE)
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), x * torch.sigmoid(1.702 * x))
    torch.testing.assert_close(ACTIVATIONS["gelu_pytorch_tanh"](x), F.gelu(x, approximate="tanh"))


@pytest.mark.parametrize(("height", "width"), [(12, 18), (6, 6), (17, 23), (41, 7)])
def test_patches_and_their_product_are_the_convolution(height, width):
    config = tiny_config().vision_config
    embedding = PatchEmbedding(config, bias=True)
    torch.nn.init.normal_(embedding.weight)
    torch.nn.init.normal_(embedding.bias)
    image_CHW = torch.randn(3, height, width)
    patches, (h, w) = patchify(image_CHW, patch=PATCH)
    assert (h, w) == (height // PATCH, width // PATCH)
    with torch.no_grad():
        conv = F.conv2d(image_CHW[None], embedding.weight, embedding.bias, stride=PATCH)[0]
        torch.testing.assert_close(embedding(patches), conv.flatten(1).t(), atol=1e-4, rtol=1e-4)


def test_a_full_grid_takes_every_row_of_the_table_once():
    for side in (1, 2, 12, 27, 70):
        assert torch.equal(patch_position_ids(side, side, side=side), torch.arange(side * side))


def test_position_ids_of_a_grid_are_rows_times_columns():
    ids = patch_position_ids(5, 3, side=12).view(5, 3)
    rows, columns = patch_position_ids(5, 1, side=12) // 12, patch_position_ids(1, 3, side=12)
    assert torch.equal(ids, rows[:, None] * 12 + columns)
    assert rows.tolist() == [0, 2, 4, 7, 9]
    assert columns.tolist() == [0, 4, 8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_position_ids_do_not_depend_on_the_default_dtype(dtype):
    expected = patch_position_ids(58, 49, side=70)
    before = torch.get_default_dtype()
    patch_position_ids.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(patch_position_ids(58, 49, side=70), expected)
    finally:
        torch.set_default_dtype(before)
        patch_position_ids.cache_clear()


@pytest.mark.parametrize("seed", range(4))
def test_latents_stand_in_the_places_of_image_tokens(seed):
    """Of rows with none to three images, padded with image tokens on either side, and of one row cut anywhere."""
    model, ids, mask, latents = tiny_model(), *random_prompts(seed, image=tiny_config().image_token_id)
    embedded = model.text_model.embed_tokens(ids)
    given = ModelInputs(input_ids_BT=ids, attention_mask_BT=mask)
    expected = merged(embedded, ids, mask, latents, image_token_id=model.config.image_token_id)
    seen = model.see(given, latents_NLD=latents)
    assert torch.equal(seen.into(embedded), expected)
    sources = model.sources(given)
    for start, end in ((0, 3), (3, 7), (5, ids.shape[1])):
        sight = model.sight(model.project(latents), sources[:, start:end])
        now = embedded[:, start:end]
        assert torch.equal(now if sight is None else sight.into(now), expected[:, start:end])


def random_prompts(seed, *, image):
    rng = random.Random(seed)
    rows, images = [], 0
    for _ in range(3):
        row = [rng.randint(10, 60)]
        for _ in range(rng.randint(0, 3)):
            row += [image] * LATENTS + [rng.randint(10, 60)] * rng.randint(0, 2)
            images += 1
        rows.append(row)
    width = max(map(len, rows)) + 2
    ids, mask = torch.full((3, width), image), torch.zeros(3, width, dtype=torch.long)
    for index, row in enumerate(rows):
        start = rng.choice((0, width - len(row)))
        ids[index, start : start + len(row)], mask[index, start : start + len(row)] = torch.tensor(row), 1
    return ids, mask, torch.randn(max(images, 1), LATENTS, 32, generator=torch.Generator().manual_seed(seed))


def test_places_and_latents_are_counted():
    with pytest.raises(AssertionError, match="2 places for 3 latents"):
        Placed(torch.zeros(3, 2), torch.tensor([[True, False, True]]))


def test_nothing_is_placed_where_no_token_is_an_image():
    model = tiny_model()
    ids = torch.tensor([[1, 50, 60]])
    inputs = ModelInputs(input_ids_BT=ids, attention_mask_BT=torch.ones_like(ids))
    assert model.see(inputs) is None
    assert model.see(inputs, latents_NLD=torch.zeros(1, LATENTS, 32)) is None


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(InputError, match="40x3 pixels is smaller than a 6-pixel patch"):
        tiny_model().encode_images([torch.zeros(3, 3, 40)])


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_latents_have_the_text_size_whatever_the_image(backend):
    model = tiny_model(backend=backend)
    images = [torch.randn(3, *size) for size in ((6, 6), (72, 72), (7, 65), (72, 6), (6, 6))]
    with torch.no_grad():
        latents = model.encode_images(images)
        assert latents.shape == (5, LATENTS, 32)
        assert not torch.equal(latents[0], latents[4])


def test_gradients_reach_every_parameter():
    model = tiny_model(std=0.2)
    ids = torch.tensor([[1, *[model.config.image_token_id] * LATENTS, 50, 60]])
    inputs = ModelInputs(input_ids_BT=ids, attention_mask_BT=torch.ones_like(ids))
    seen = model.see(inputs, latents_NLD=model.encode_images([torch.randn(3, 20, 30)]))
    model.logits(model(ids, positions_BT=torch.arange(ids.shape[1])[None], seen=seen)).square().mean().backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    # Adding a constant to every key changes no softmax: its gradient is zero but for rounding.
    assert [name for name in silent if not name.endswith("k_proj.bias")] == []


def test_tied_embeddings_are_one_tensor():
    import dataclasses

    model = tiny_model(dataclasses.replace(tiny_config(), tie_word_embeddings=True))
    assert model.lm_head.weight is model.text_model.embed_tokens.weight


def test_images_are_encoded_in_groups_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, at most so many bytes at once; a larger image goes alone."""
    from idefics.model import peaks

    model = tiny_model(std=0.3)
    images = [torch.randn(3, 6 * h, 6 * w) for h, w in ((2, 3), (4, 4), (1, 5), (6, 6), (2, 2))]
    with torch.inference_mode():
        whole = model.encode_images(images)
        seen: list[int] = []
        encode = model._encode
        monkeypatch.setattr(peaks, "VISION_BYTES", 22 * model.encoding_bytes(torch.empty(3, 6, 6)))
        monkeypatch.setattr(model, "_encode", lambda group: seen.append(len(group)) or encode(group))
        grouped = model.encode_images(images)
    assert seen == [2, 1, 1, 1]
    torch.testing.assert_close(grouped, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 6), (1, 6), (7, 6), (2, 5, 6)])
def test_a_long_input_is_normalised_in_pieces_to_the_same_bits(shape, dtype, monkeypatch):
    x = (5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    whole = normalised(x, eps=1e-5)
    wide = x.float()
    spelled = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(dtype)
    torch.testing.assert_close(whole, spelled)
    for strided in (x, torch.cat((x, x), dim=-1)[..., :6]):
        with monkeypatch.context() as patched:
            patched.setattr(norm, "ELEMENTS_AT_ONCE", 13)
            assert torch.equal(normalised(strided, eps=1e-5), whole)
