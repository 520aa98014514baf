from __future__ import annotations

import random

import pytest
import torch

from idefics.errors import InputError
from idefics.inputs.padded import seen_by_mask
from idefics.processor.image_mask import mask_of, seen_images

TEXT, EOS, IMAGE = 5, 2, 7


def token_by_token(ids: list[int]) -> list[int]:
    """The rule, spelled out."""
    seen, count, ended = [], -1, False
    for token in ids:
        if token == IMAGE:
            count, ended = count + 1, False
        seen.append(-1 if ended else count)
        ended = ended or token == EOS
    return seen


def test_seen_is_the_rule_token_by_token() -> None:
    draw = random.Random(0)
    rows = [draw.choices([TEXT, EOS, IMAGE], weights=[3, 1, 1], k=12) for _ in range(200)]
    ids = torch.tensor(rows)
    assert seen_images(ids, image_token_id=IMAGE, eos_token_id=EOS).tolist() == [token_by_token(row) for row in rows]
    without = [token_by_token([TEXT if token == EOS else token for token in row]) for row in rows]
    assert seen_images(ids, image_token_id=IMAGE, eos_token_id=None).tolist() == without


def test_the_mask_and_back() -> None:
    seen = torch.tensor([[-1, 0, 2, 1], [-1, -1, -1, 0]])
    mask = mask_of(seen, 3)
    assert mask.dtype == torch.int64
    assert mask.sum(-1).tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    for kind in (torch.int64, torch.bool, torch.float32):
        assert torch.equal(seen_by_mask(mask.to(kind)), seen)
    assert seen_by_mask(torch.zeros(2, 4, 1, dtype=torch.bool)).tolist() == [[-1] * 4] * 2
    assert seen_by_mask(torch.zeros(2, 4, 0)).tolist() == [[-1] * 4] * 2


def test_masks_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"prompt 2: token 3 sees image 4, but the mask holds 3 image"):
        mask_of(torch.tensor([[0, 1, 2], [0, 0, 3]]), 3)
    mask = torch.zeros(2, 5, 4)
    mask[1, 2, [0, 3]] = 1
    with pytest.raises(InputError, match=r"token 3 of prompt 2 sees 2 images \(1, 4\)"):
        seen_by_mask(mask)
    with pytest.raises(InputError, match=r"shape \(2, 5\); \(prompts, tokens, images\)"):
        seen_by_mask(mask[..., 0])
