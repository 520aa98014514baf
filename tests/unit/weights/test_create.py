from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import idefics
from fakes import tiny_config, tiny_tokenizer
from idefics.config import Idefics2Config
from idefics.config.presets import preset
from idefics.errors import CheckpointError, CheckpointNotFound, ConfigError, OptionError
from idefics.model.idefics2 import Idefics2
from idefics.processor.detokenizer import TextStream
from idefics.weights.create import create_checkpoint, padded_tokenizer
from idefics.weights.init import initialize
from idefics.weights.load import load_config, load_model

ANY = "Hello, wörld! 日本 🙂 0123\n\ttabs  and  spaces <b>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [10**9, 30_000])
def test_weights_are_those_of_initialize(tmp_path: Path, tokenizer: Path, dtype: str, tied: bool, limit: int) -> None:
    config = dataclasses.replace(tiny_config(), tie_word_embeddings=tied)
    out = create_checkpoint(config, tmp_path / "new", seed=7, dtype=dtype, tokenizer=tokenizer, max_shard_bytes=limit)
    made = load_model(out)
    direct = Idefics2(config).to(getattr(torch, dtype))
    initialize(direct, seed=7)
    assert load_config(out) == dataclasses.replace(config, dtype=dtype)
    expected = dict(direct.named_parameters())
    assert set(expected) == set(dict(made.named_parameters()))
    for name, parameter in made.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert (out / "model.safetensors.index.json").exists() == (limit == 30_000)
    assert not list(tmp_path.glob(".*"))


def test_it_can_be_asked(tmp_path: Path, tokenizer: Path) -> None:
    progress: list[tuple[int, int]] = []
    out = create_checkpoint(tiny_config(), tmp_path, tokenizer=tokenizer, progress=lambda *at: progress.append(at))
    assert progress[-1][0] == progress[-1][1] == sum(p.nbytes for p in load_model(out).parameters())
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "model.safetensors",
    }  # fmt: skip
    model = idefics.load(out)
    assert isinstance(model.chat([{"role": "user", "content": "Hi"}], max_new_tokens=3), str)
    end = model.processor.end_of_utterance_id
    assert model.defaults["eos_token_id"] == [2, end]
    assert model.processor.image_processor.size == {"shortest_edge": 36, "longest_edge": 72}
    assert (tmp_path / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["idefics2-8b", "idefics2-nano", "tiny-random-idefics2"])
def test_padded_tokenizer(tmp_path: Path, tokenizer: Path, name: str) -> None:
    config = preset(name)
    padded = padded_tokenizer(tokenizer / "tokenizer.json", config)
    padded.save(tmp_path)
    again = type(padded).from_folder(tmp_path)
    ids = {
        token: again.backend.token_to_id(token)
        for token in ("<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>")
    }
    image = config.image_token_id
    assert list(ids.values()) == [0, 1, 2, image - 1, image, image + 1]
    assert len(again) == config.text_config.vocab_size
    assert sorted(again.get_vocab().values()) == list(range(config.text_config.vocab_size))
    original = tiny_tokenizer()
    for text in (ANY, "In<image>In the red<end_of_utterance>\nAssistant:", ""):
        encoded = again.encode(text)
        assert again.convert_ids_to_tokens(encoded) == original.convert_ids_to_tokens(original.encode(text))
        assert again.decode(encoded, skip_special_tokens=True) == original.decode(
            original.encode(text), skip_special_tokens=True
        )
    # Whatever a random model says can be shown, piece by piece.
    stream = TextStream(again)
    said = list(range(3, len(again), 97))
    assert stream.push(said) + stream.finish() == again.decode(said, skip_special_tokens=True)


def test_tokenizers_that_do_not_fit(tmp_path: Path, tokenizer: Path) -> None:
    def with_text(**text: int) -> Idefics2Config:
        config = tiny_config()
        return dataclasses.replace(config, text_config=dataclasses.replace(config.text_config, **text), image_token_id=4)

    with pytest.raises(ConfigError, match="has 382 tokens"):
        padded_tokenizer(tokenizer / "tokenizer.json", with_text(vocab_size=300))
    with pytest.raises(ConfigError, match="special ids"):
        padded_tokenizer(tokenizer / "tokenizer.json", with_text(bos_token_id=5))
    with pytest.raises(ConfigError, match="<image> at 380"):
        create_checkpoint(preset("idefics2-nano"), tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(CheckpointNotFound, match=r"tokenizer\.json"):
        padded_tokenizer(tmp_path / "tokenizer.json", tiny_config())
    bare = json.loads((tokenizer / "tokenizer.json").read_text().replace("<image>", "<picture>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare))
    with pytest.raises(ConfigError, match="lacks <image>"):
        padded_tokenizer(tmp_path / "tokenizer.json", tiny_config())
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty"):
        create_checkpoint(tiny_config(), tmp_path, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="a file"):
        create_checkpoint(tiny_config(), tmp_path / "mine", tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="cannot write"):
        create_checkpoint(tiny_config(), tmp_path / "mine" / "below", tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupted_one_leaves_nothing(tmp_path: Path, tokenizer: Path) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_checkpoint(tiny_config(), tmp_path / "new", tokenizer=tokenizer, progress=stop)
    assert not list(tmp_path.iterdir())


def test_options(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(OptionError, match="max_shard_bytes"):
        create_checkpoint(tiny_config(), tmp_path, tokenizer=tokenizer, max_shard_bytes=0)
    with pytest.raises(OptionError, match="int3"):
        create_checkpoint(tiny_config(), tmp_path, tokenizer=tokenizer, dtype="int3")
    with pytest.raises(ConfigError, match="no preset"):
        create_checkpoint("unknown", tmp_path)
