from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

import mistral_tokenizer
from idefics.errors import CheckpointNotFound, ConfigError, InputError, OptionError
from idefics.processor.tokenizer import Tokenizer


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(folder / name, tmp_path / name)
    return tmp_path


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_the_snippets_of_the_model_cards(tokenizer: Tokenizer) -> None:
    assert tokenizer("<end_of_utterance>", add_special_tokens=False).input_ids == [32002]
    bad = tokenizer(["<image>", "<fake_token_around_image>"], add_special_tokens=False).input_ids
    assert bad == [[32001], [32000]]


def test_names_and_numbers(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token) == (
        "<s>",
        "</s>",
        "<unk>",
        "<unk>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (1, 2, 0, 0)
    assert (len(tokenizer), tokenizer.vocab_size) == (32003, 32000)
    assert tokenizer.all_special_ids == [0, 1, 2, 32000, 32001, 32002]
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length is None
    assert tokenizer.convert_tokens_to_ids("▁the") == 272
    assert tokenizer.convert_tokens_to_ids(["<image>", "no such token"]) == [32001, 0]
    assert tokenizer.convert_ids_to_tokens([272, 32001, 99999]) == ["▁the", "<image>", None]
    assert tokenizer.convert_ids_to_tokens(272) == "▁the"
    assert tokenizer.get_vocab()["<image>"] == 32001


def test_text_after_a_special_token_is_a_segment_of_its_own(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<image>In", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<image>", "▁In"]


def test_the_base_tokenizer_is_given_no_end_of_utterance(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(mistral_tokenizer.checkpoint(end_of_utterance=False))
    assert len(tokenizer) == 32002
    assert max(tokenizer.encode("x<end_of_utterance>")) < 32002
    tokenizer.save(tmp_path)
    assert len(Tokenizer.from_folder(tmp_path)) == 32002


def test_padding(tokenizer: Tokenizer) -> None:
    texts = ["one two", "one"]
    left = tokenizer(texts, padding=True)
    assert left.input_ids == [[1, 624, 989], [0, 1, 624]]
    assert left.attention_mask == [[1, 1, 1], [0, 1, 1]]
    right = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    assert right.input_ids.tolist() == [[1, 624, 989], [1, 624, 0]]
    assert right.attention_mask.dtype == torch.int64
    wide = tokenizer(texts, padding="max_length", max_length=5, return_tensors="np")
    assert wide.input_ids.tolist() == [[0, 0, 1, 624, 989], [0, 0, 0, 1, 624]]
    assert tokenizer("one", return_tensors="pt").input_ids.tolist() == [[1, 624]]
    assert tokenizer([]).input_ids == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": "wide"}, "padding = 'wide'"), ({"padding": "max_length"}, "needs max_length"),
        ({"padding_side": "top"}, "padding_side = 'top'"), ({"return_tensors": "tf"}, "return_tensors = 'tf'"),
        ({"return_tensors": "pt"}, "padding=True"), ({"truncation": True, "max_length": 1}, "max_length = 1"),
    ],
)  # fmt: skip
def test_options_are_refused_by_name(tokenizer: Tokenizer, options: dict[str, Any], words: str) -> None:
    with pytest.raises((OptionError, InputError), match=words):
        tokenizer(["one two", "one"], **options)


def test_truncation_keeps_special_tokens_and_obeys_its_side(copy: Path) -> None:
    tokenizer = Tokenizer.from_folder(copy)
    text = "one two three four"
    assert tokenizer.encode(text, truncation=True, max_length=3) == [1, 624, 989]
    assert tokenizer.encode(text, truncation=True, max_length=99) == tokenizer.encode(text)
    assert tokenizer.encode(text, truncation=True) == tokenizer.encode(text)
    configure(copy, truncation_side="left", model_max_length=3, add_eos_token=True)
    tokenizer = Tokenizer.from_folder(copy)
    assert tokenizer.encode(text, truncation=True) == [1, tokenizer.encode(text)[-2], 2]
    assert tokenizer.encode("one") == [1, 624, 2], "the config's add_eos_token rules"


def test_bos_can_be_switched_off(copy: Path) -> None:
    configure(copy, add_bos_token=False)
    assert Tokenizer.from_folder(copy).encode("one") == [624]


def test_decoding(tokenizer: Tokenizer) -> None:
    ids = [1, 624, 32002, 2]
    assert tokenizer.decode(ids) == "<s> one<end_of_utterance></s>"
    for form in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        assert tokenizer.decode(form, skip_special_tokens=True) == "one"
    assert tokenizer.decode(624) == tokenizer.decode(torch.tensor(624)) == "one"
    assert tokenizer.batch_decode(torch.tensor([ids, ids]), skip_special_tokens=True) == ["one", "one"]
    assert tokenizer.batch_decode([[624], []]) == ["one", ""]
    spaced = tokenizer.encode("one . two", add_special_tokens=False)
    assert tokenizer.decode(spaced) == "one . two"
    assert tokenizer.decode(spaced, clean_up_tokenization_spaces=True) == "one. two"
    with pytest.raises(InputError):
        tokenizer.decode("text")
    with pytest.raises(InputError):
        tokenizer.encode(3)  # type: ignore[arg-type]


def test_clean_up_of_the_files_is_honoured(copy: Path) -> None:
    configure(copy, clean_up_tokenization_spaces=True)
    tokenizer = Tokenizer.from_folder(copy)
    ids = tokenizer.encode("one . two", add_special_tokens=False)
    assert tokenizer.decode(ids) == "one. two"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "one . two"


def test_saved_files_are_the_same_tokenizer(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    again = Tokenizer.from_folder(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.encode("<image>In") == tokenizer.encode("<image>In")
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["pad_token"] == "<unk>"


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    """What the embedded model has: made with `tokenizers`, saved by us with merges that every release reads."""
    backend = Backend(models.BPE({"a": 0, "b": 1, "ab": 2, "<pad>": 3}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = {
        "pad_token": "<pad>",
        "eos_token": "<end_of_utterance>",
        "additional_special_tokens": ["<image>"],
        "padding_side": "left",
    }
    tokenizer = Tokenizer(backend, config)
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"] == ["a b"]
    again = Tokenizer.from_folder(tmp_path)
    assert again.encode("ab <image>") == [2, 5] == tokenizer.encode("ab <image>")
    assert (again.eos_token_id, again.bos_token_id, again.padding_side) == (4, None, "left")
    assert again.convert_tokens_to_ids("nothing") is None


def test_tokens_that_only_companion_files_know(copy: Path) -> None:
    (copy / "added_tokens.json").write_text(json.dumps({"<extra>": 32003}))
    assert Tokenizer.from_folder(copy).encode("<extra>", add_special_tokens=False) == [32003]
    Tokenizer.from_folder(copy).save(copy / "saved")
    assert Tokenizer.from_folder(copy / "saved").encode("<extra>", add_special_tokens=False) == [32003]
    (copy / "added_tokens.json").write_text(json.dumps({"<extra>": 7}))
    with pytest.raises(ConfigError, match="'<extra>' the id 7"):
        Tokenizer.from_folder(copy)


def test_an_id_that_the_files_disagree_on_is_refused(copy: Path) -> None:
    entry = {"content": "<image>", "special": True}
    configure(copy, added_tokens_decoder={"5": entry})
    with pytest.raises(ConfigError, match=r"'<image>' the id 5, tokenizer\.json 32001"):
        Tokenizer.from_folder(copy)


def test_files_of_transformers_5(copy: Path) -> None:
    (copy / "special_tokens_map.json").unlink()
    configure(
        copy,
        added_tokens_decoder=...,
        additional_special_tokens=...,
        extra_special_tokens=["<end_of_utterance>"],
        backend="tokenizers",
    )
    tokenizer = Tokenizer.from_folder(copy)
    assert (len(tokenizer), tokenizer.pad_token_id) == (32003, 0)
    configure(copy, extra_special_tokens={"image_token": "<image>"})
    assert len(Tokenizer.from_folder(copy)) == 32003


def test_bare_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a readable tokenizer"):
        Tokenizer.from_folder(tmp_path)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path, padding_side="left")
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", None)
    with pytest.raises(InputError, match="no pad_token"):
        tokenizer(["a b", "a"], padding=True)


def test_odd_tokens_in_the_config() -> None:
    with pytest.raises(ConfigError, match="special token"):
        Tokenizer(mistral_tokenizer.backend(), {"bos_token": {"text": "<s>"}})
    with pytest.raises(OptionError, match="padding_side"):
        Tokenizer(mistral_tokenizer.backend(), {"padding_side": "middle"})
