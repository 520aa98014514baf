"""Where training begins: every tensor from a generator of its own."""

from __future__ import annotations

from collections import defaultdict

import torch

from idefics.config.presets import preset
from idefics.weights.families import build_on_meta
from idefics.weights.init import starts


def test_no_two_tensors_of_the_largest_model_begin_alike() -> None:
    model = build_on_meta(preset("idefics2-8b"))
    begun: defaultdict[bytes, list[str]] = defaultdict(list)
    for name, start in starts(model).items():
        if start.kind in ("normal", "latents"):
            values = torch.empty(4)
            start.fill(values, seed=0, std=1.0)
            begun[values.numpy().tobytes()].append(name)
    assert len(begun) > 400
    assert [names for names in begun.values() if len(names) > 1] == []
