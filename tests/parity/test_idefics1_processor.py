"""The first family's processor beside transformers 5: what 4.40 does not have, and files in both directions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import mistral_tokenizer
from golden.make_processor_golden import picture
from idefics.processor.idefics1 import IdeficsProcessor

transformers = pytest.importorskip("transformers")

A, J, K = picture(30, 30), picture(50, 20), picture(20, 50)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What we write, and in `theirs` what transformers 5 writes after reading it."""
    folder = tmp_path_factory.mktemp("saved")
    IdeficsProcessor.from_folder(mistral_tokenizer.checkpoint_of_2023(), image_size=28).save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.AutoProcessor.from_pretrained(folder).save_pretrained(folder / "theirs")
    return folder


@pytest.fixture(scope="module")
def oracle(saved: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoProcessor.from_pretrained(saved)


def test_what_we_save_is_what_they_load_and_back(saved: Path, oracle: Any) -> None:
    assert type(oracle).__name__ == "IdeficsProcessor"
    ours, theirs = IdeficsProcessor.from_folder(saved), IdeficsProcessor.from_folder(saved / "theirs")
    assert (saved / "theirs" / "processor_config.json").is_file(), "nested, the era of transformers 5"
    assert theirs.image_processor == ours.image_processor
    assert theirs.chat_template == ours.chat_template, "their class has no use for it, and leaves the file alone"
    out, other = ours(["a", A, "b", "c"]), theirs(["a", A, "b", "c"])
    assert all(torch.equal(out[key], other[key]) for key in out)


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("What is this?", A), (["one", "the second"], [A, J]), (["one", "the second"], [[A, J], [K]]),
        ([" spaces ", "none"], [[A], []]), (["User:", A, "Who?"], None), ([["a", J], [K, "b"]], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"add_eos_token": True}])
def test_texts_and_images_apart(saved: Path, oracle: Any, text: Any, images: Any, options: dict[str, Any]) -> None:
    ours = IdeficsProcessor.from_folder(saved)(text=text, images=images, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = oracle(text=text, images=images, return_tensors="pt", padding=True, **options)
    for key in ("input_ids", "attention_mask", "image_attention_mask"):
        assert ours[key].tolist() == theirs[key].tolist(), key
    assert ours.pixel_values.shape == theirs["pixel_values"].shape
    assert torch.allclose(ours.pixel_values, theirs["pixel_values"], atol=0.1), "theirs resizes with torchvision"
