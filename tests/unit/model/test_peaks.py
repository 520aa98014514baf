"""What is reckoned for a pass is what it takes: every tensor of a pass is counted while it lives."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idefics.config import Config, Idefics1Config, Idefics2Config
from idefics.config.presets import preset
from idefics.model import peaks
from idefics.model.base import VisionLanguageModel
from idefics.model.peaks import encoded_bytes, encoding_bytes, groups, prompt_bytes
from idefics.weights.families import build_on_meta


class Alive(TorchDispatchMode):
    """Counts the bytes of what operations make, as long as it lives.

    Attributes:
        most: at any one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._held:
                    weakref.finalize(storage, self._held.pop, storage._cdata)
                    self._held[storage._cdata] = tensor.untyped_storage().nbytes()
        self.most = max(self.most, sum(self._held.values()))
        return made


def model_of(name: str) -> VisionLanguageModel:
    """The published widths, one layer each, without any storage."""
    config: Config = preset(name)
    one = {"num_hidden_layers": 1}
    changes: dict[str, Any] = {"vision_config": dataclasses.replace(config.vision_config, **one)}
    changes["text_config"] = dataclasses.replace(config.text_config, **one)
    if isinstance(config, Idefics1Config):
        changes["cross_layer_interval"] = 1
    return build_on_meta(dataclasses.replace(config, **changes)).to(torch.bfloat16).eval()


@pytest.mark.parametrize(("name", "side", "count"), [("idefics2-8b", 490, 3), ("idefics-9b", 224, 8)])
def test_images_take_what_is_reckoned(name: str, side: int, count: int) -> None:
    model = model_of(name)
    images = [torch.empty(3, side, side, device="meta") for _ in range(count)]
    with torch.inference_mode(), Alive() as alive:
        model.project(model.encode_images(images))
    planned = sum(model.encoding_bytes(image) for image in images)
    assert 0.6 * planned < alive.most < 1.05 * planned


def test_the_decoder_takes_what_is_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = model_of("idefics2-8b"), 640
    x_1TD = torch.empty(1, tokens, 4096, device="meta", dtype=torch.bfloat16)

    def most() -> int:
        with Alive() as alive:
            model.text_model.layers[0].mlp(x_1TD)
        return alive.most

    planned = tokens * prompt_bytes(model.config, width=2)
    with torch.inference_mode():
        assert most() <= planned
    with torch.no_grad():
        monkeypatch.setattr(torch, "is_grad_enabled", lambda: True)
        assert most() > planned, "a fourth tensor of the inner size is not noticed"


def test_groups_of_idefics2_8b_in_16_bits_are_ten_thousand_patches() -> None:
    config = preset("idefics2-8b")
    for last, together in ((200, 1), (201, 2)):
        sizes = [encoding_bytes(config, patches, width=2) for patches in (4900, 4900, last)]
        assert len(list(groups(sizes))) == together
    # A photo of 1920 x 1080 in five: three sub-images, the fourth and the whole.
    assert list(groups([encoding_bytes(config, n, width=2) for n in (*[68 * 38] * 4, 70 * 39)])) == [(0, 3), (3, 5)]
    assert peaks.VISION_BYTES // encoding_bytes(config, 4900, width=4) == 1
    assert list(groups([])) == []


def test_images_that_decoders_look_at_apart_count_their_keys_and_values() -> None:
    nine, eighty = preset("idefics-9b"), preset("idefics-80b")
    assert round(encoded_bytes(nine, width=2) / 1e6, 1) == 8.4
    assert encoded_bytes(preset("idefics2-8b"), width=2) == 64 * 4096 * 2
    for config in (nine, eighty):
        each = encoding_bytes(config, 256, width=2)
        images = peaks.VISION_BYTES // each
        assert images * encoded_bytes(config, width=2) < peaks.VISION_BYTES
        assert next(iter(groups([each] * 100))) == (0, images)
    assert isinstance(preset("idefics2-8b"), Idefics2Config)
