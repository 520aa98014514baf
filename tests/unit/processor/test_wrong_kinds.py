"""Values of the wrong JSON kind in a checkpoint's small files: the file, the key and the value are named, whichever it is."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from idefics.engine.defaults import generation_defaults
from idefics.engine.options import ALIASES, OPTIONS
from idefics.errors import CheckpointError, CheckpointNotFound, ConfigError
from idefics.processor.families import load_processor
from idefics.weights.load import load_config
from idefics.weights.shards import Shards

VALUES: list[Any] = [True, 5, -1, 0.5, "x", [], [5], ["x"], [None], {}, {"a": 5}, {"5": "x"}, {"content": 5}]
"""Of every kind, and nested a step."""


def _each(keys: list[str], fine: list[Any]) -> Mapping[str, list[Any]]:
    """The same for several keys."""
    return dict.fromkeys(keys, fine)


TOKENS: list[Any] = [[], ["x"], {}, {"5": "x"}]
NAMED = _each(["bos_token", "eos_token", "unk_token", "pad_token"], ["x"])
OF_ANSWERS: Mapping[str, list[Any]] = {
    **{name: [5] for name in OPTIONS},
    **_each(["do_sample", "early_stopping"], [True]),
    **_each(["temperature", "top_p", "typical_p", "min_p", "length_penalty"], [5, -1, 0.5]),
    **_each(["top_k", "best_of", "seed", "pad_token_id"], [5, -1]),
    "repetition_penalty": [5, 0.5],
    "frequency_penalty": [-1, 0.5],
    "presence_penalty": [-1, 0.5],
    "bad_words_ids": [[]],
    "eos_token_id": [5, -1, [], [5]],
    "stop": ["x", [], ["x"]],
}
FINE: dict[str, Mapping[str, list[Any]]] = {
    "tokenizer_config.json": {
        **NAMED, "tokenizer_class": ["x"], "padding_side": [], "truncation_side": [], "model_max_length": [5],
        "clean_up_tokenization_spaces": [True], "added_tokens_decoder": [{}], "additional_special_tokens": TOKENS,
        "extra_special_tokens": TOKENS, "add_bos_token": [True], "add_eos_token": [True], "chat_template": ["x"],
    },
    "special_tokens_map.json": {**NAMED, "additional_special_tokens": TOKENS},
    "added_tokens.json": {"<image>": [], "new": []},
    "preprocessor_config.json": {
        **_each(["do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad", "do_image_splitting"], [True]),
        "size": [], "resample": [5], "rescale_factor": [5, 0.5], "image_mean": [5, -1, 0.5], "image_std": [5, -1, 0.5],
        "image_processor_type": [], "processor_class": [], "do_center_crop": [], "data_format": [], "model_input_names": [],
    },
    "processor_config.json": {"image_seq_len": [5], "image_processor": [{}], "processor_class": [], "chat_template": ["x"]},
    "chat_template.json": {"chat_template": ["x"]},
    "generation_config.json": {
        **OF_ANSWERS, **{alias: OF_ANSWERS[name] for alias, name in ALIASES.items()},
        "use_cache": [True], "penalty_alpha": [], "a_new_key": [[], {}],
    },
    "model.safetensors.index.json": {"weight_map": [{}, {"5": "x"}]},
}  # fmt: skip
"""By file and key, what passes of the values; every other is refused."""


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose chat template and index of weights would be read if there were any."""
    made = tmp_path_factory.mktemp("kinds") / "model"
    shutil.copytree(tiny_checkpoint, made)
    (made / "chat_template.jinja").unlink()
    (made / "model.safetensors").unlink()
    return made


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in FINE.items() for key in keys])
def test_what_is_of_the_wrong_kind_is_named(folder: Path, name: str, key: str) -> None:
    path = folder / name
    before = path.read_text() if path.exists() else None
    raw = json.loads(before) if before is not None else {}
    try:
        for value in VALUES:
            path.write_text(json.dumps({**raw, key: value}))
            if any(value == fine and type(value) is type(fine) for fine in FINE[name][key]):
                _read(folder, name)
                continue
            with pytest.raises((ConfigError, CheckpointError)) as caught:
                _read(folder, name)
            said = str(caught.value)
            assert name in said, value
            assert key in said, value
            assert repr(value) in said or _inside(value) in said
    finally:
        path.unlink()
        if before is not None:
            path.write_text(before)


def _read(folder: Path, name: str) -> None:
    """What loading reads of one file."""
    if name == "generation_config.json":
        generation_defaults(folder, load_config(folder))
    elif name == "model.safetensors.index.json":
        with contextlib.suppress(CheckpointNotFound):  # there is no file of that name
            Shards(folder)
    else:
        load_processor(folder)


def _inside(value: Any) -> str:
    """The offending key of an object, with its value: where a set of settings is due, that is the wrong one."""
    return "".join(f"{key} = {one!r}" for key, one in value.items()) if isinstance(value, dict) and value else repr(value)
