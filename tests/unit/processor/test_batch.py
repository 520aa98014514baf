from __future__ import annotations

import pytest
import torch

from idefics.processor.batch import BatchFeature


def batch() -> BatchFeature:
    return BatchFeature(input_ids=torch.tensor([[1]]), pixel_values=torch.ones(1), text=["x"])


def test_attributes_are_keys() -> None:
    inputs = batch()
    assert inputs.input_ids is inputs["input_ids"]
    assert dict(**inputs).keys() == {"input_ids", "pixel_values", "text"}
    with pytest.raises(AttributeError, match="no 'labels' among these inputs; there are input_ids"):
        _ = inputs.labels


def test_only_floating_tensors_are_cast() -> None:
    inputs = batch()
    assert inputs.to("cpu", torch.bfloat16) is inputs
    assert inputs.pixel_values.dtype == torch.bfloat16
    assert inputs.input_ids.dtype == torch.int64
    assert inputs.text == ["x"]
    assert batch().to(torch.float16).pixel_values.dtype == torch.float16
    assert batch().to("meta").input_ids.device.type == "meta"
    assert batch().to(device="cpu", dtype=torch.float64).pixel_values.dtype == torch.float64
