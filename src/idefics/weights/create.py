"""A checkpoint with random weights, of any size, in the published layout: to test with, or to train from.

Weights are written as they are drawn, one tensor at a time: the 8B model's 16.8 GB need the memory of its largest tensor.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor

from idefics.assets import EMBEDDED
from idefics.config import Config
from idefics.config.json_files import read_json, write_json
from idefics.config.presets import preset
from idefics.config.whole_files import expanded
from idefics.errors import CheckpointError, CheckpointNotFound, ConfigError, OptionError
from idefics.machine.byte_sizes import readable_bytes
from idefics.machine.dtypes import dtype_name, dtype_named
from idefics.machine.progress import Progress
from idefics.processor.base import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN, Processor
from idefics.processor.families import processor_class
from idefics.processor.tokenizer import Tokenizer
from idefics.weights.dtype import torch_dtype
from idefics.weights.families import build_on_meta, family_of
from idefics.weights.init import Start, starts
from idefics.weights.save import shard_index, shard_names, split_shards
from idefics.weights.shards import FLOATS, INDEX

__all__ = ["EMBEDDED_TOKENIZER", "create_checkpoint", "padded_tokenizer"]

EMBEDDED_TOKENIZER = EMBEDDED / "tokenizer.json"
"""What presets whose real tokenizer is not ours to ship are given, padded to their vocabulary."""

_NAMES = {dtype: name for name, dtype in FLOATS.items()}


def create_checkpoint(
    preset_or_config: str | Config,
    out: str | Path,
    *,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> Path:
    """Writes a checkpoint that loads, answers (nonsense) and trains.

    The weights are those that `weights.init.initialize` gives a model of this dtype. The folder appears when it is whole.

    Args:
        preset_or_config: a preset's name, or any config.
        out: a folder that is empty or not there yet.
        seed: of the weights.
        dtype: they are written in; None takes the config's.
        tokenizer: a folder to take the tokenizer from; None pads the embedded model's to the vocabulary.
        max_shard_bytes: of one file; a larger tensor gets a file to itself.
        progress: told (bytes written, bytes in all).

    Returns:
        `out`.

    Raises:
        ConfigError: no such preset, or a tokenizer that does not fit it.
        CheckpointError: the folder is not empty, or cannot be written.
    """
    config = preset(preset_or_config) if isinstance(preset_or_config, str) else preset_or_config
    chosen = torch_dtype(dtype)
    if chosen is not None:
        config = dataclasses.replace(config, dtype=dtype_name(chosen))
    if max_shard_bytes < 1:
        raise OptionError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    out = expanded(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out} is {'a file' if out.is_file() else 'not empty'}; give a folder that is empty or new")
    processor = _processor(config, tokenizer)
    part = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
        _write_weights(config, part, seed=seed, max_shard_bytes=max_shard_bytes, progress=progress)
        processor.save_pretrained(part)
        write_json(part / "generation_config.json", _generation(config, processor), sort_keys=True)
        write_json(part / "config.json", config.to_dict(), sort_keys=True)
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def padded_tokenizer(source: Path, config: Config) -> Tokenizer:
    """A small tokenizer with the vocabulary size and special ids of a config; any text still encodes and decodes.

    `<image>` takes `config.image_token_id`, its companions the ids beside it (fake before, end of utterance after, which a
    base model's vocabulary has no room for), as in every published checkpoint; `<unk>`, `<s>` and `</s>` take the text
    config's. The other tokens keep their order in the ids between, and the rest of the vocabulary is entries that no merge
    leads to.

    Args:
        source: a `tokenizer.json` of byte-fallback BPE with these tokens.
        config: to fit.

    Raises:
        CheckpointNotFound: no such file.
        ConfigError: the vocabulary is too small, or the file has not the tokens.
    """
    if not source.is_file():
        raise CheckpointNotFound(f"{source} does not exist; give a folder with a tokenizer.json (--tokenizer)")
    state = read_json(source)
    text, image = config.text_config, config.image_token_id
    eos = text.eos_token_id[0] if isinstance(text.eos_token_id, list) else text.eos_token_id
    fixed = {
        "<unk>": text.pad_token_id or 0,
        "<s>": 1 if text.bos_token_id is None else text.bos_token_id,
        "</s>": 2 if eos is None else eos,
        FAKE_TOKEN: image - 1,
        IMAGE_TOKEN: image,
        END_OF_UTTERANCE: image + 1,
    }
    if image + 1 == text.vocab_size:  # a base model: no row for it, so the tokenizer must not know it
        del fixed[END_OF_UTTERANCE]
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != END_OF_UTTERANCE]
        state["model"]["vocab"].pop(END_OF_UTTERANCE, None)
    known = {**state["model"]["vocab"], **{token["content"]: token["id"] for token in state["added_tokens"]}}
    rest = [token for token in sorted(known, key=known.__getitem__) if token not in fixed]
    if set(fixed) - set(known):
        raise ConfigError(f"{source} lacks {', '.join(sorted(set(fixed) - set(known)))}; it is no tokenizer of these models")
    if len(set(fixed.values())) < len(fixed) or not all(0 <= i < text.vocab_size for i in fixed.values()):
        raise ConfigError(f"the special ids {fixed} do not fit a vocabulary of {text.vocab_size}")
    if len(rest) + len(fixed) > text.vocab_size:
        raise ConfigError(
            f"{source} has {len(rest) + len(fixed)} tokens, more than the vocabulary of {text.vocab_size}; "
            "give a folder with a smaller tokenizer (--tokenizer)"
        )
    free = [i for i in range(text.vocab_size) if i not in set(fixed.values())]
    rest += [f"<unused_{i}>" for i in free[len(rest) :]]
    vocab = {**fixed, **dict(zip(rest, free, strict=True))}
    state["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    for token in state["added_tokens"]:
        token["id"] = vocab[token["content"]]
    state["added_tokens"].sort(key=lambda token: token["id"])
    for token in ((state.get("post_processor") or {}).get("special_tokens") or {}).values():
        token["ids"] = [vocab[name] for name in token["tokens"]]
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return Tokenizer(
        Backend.from_str(json.dumps(state)),
        {
            **names,
            "additional_special_tokens": [name for name in (FAKE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE) if name in fixed],
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _processor(config: Config, folder: str | Path | None) -> Processor:
    tokenizer = padded_tokenizer(EMBEDDED_TOKENIZER, config) if folder is None else Tokenizer.from_folder(Path(folder))
    processor = processor_class(config.model_type).for_config(config, tokenizer)
    image = processor.image_token_id
    if image != config.image_token_id or len(tokenizer) > config.text_config.vocab_size:
        raise ConfigError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens and <image> at {image}; "
            f"the config has {config.text_config.vocab_size} and {config.image_token_id}"
        )
    return processor


def _generation(config: Config, processor: Processor) -> dict[str, Any]:
    """As published: ends with `</s>` or `<end_of_utterance>`, never says image tokens."""
    text, end = config.text_config, processor.end_of_utterance_id
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    return {
        "bad_words_ids": [[processor.fake_image_token_id], [processor.image_token_id]],
        "bos_token_id": text.bos_token_id,
        "eos_token_id": [i for i in dict.fromkeys((*ends, end)) if i is not None],
        "pad_token_id": text.pad_token_id,
    }


def _write_weights(config: Config, folder: Path, *, seed: int, max_shard_bytes: int, progress: Progress | None) -> None:
    model = build_on_meta(config).to(dtype_named(config.dtype))
    table = family_of(config).table
    # By identity: a tied tensor is written once, and begins as the last of its names says.
    begin = {id(model.get_parameter(name)): start for name, start in starts(model).items()}
    tensors: dict[str, Tensor] = {table.published(name): parameter for name, parameter in model.named_parameters()}
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0
    free = shutil.disk_usage(folder).free
    if total > free:
        raise CheckpointError(f"{folder.parent} has {readable_bytes(free)} free, the weights need {readable_bytes(total)}")
    shards = split_shards(tensors, max_shard_bytes)
    names = shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        drawn = ((tensor, begin[id(tensor)]) for tensor in shard.values())
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for bytes_ in _draw(drawn, seed):
                file.write(bytes_)
                done += len(bytes_)
                if progress is not None:
                    progress(done, total)
    if len(shards) > 1:
        write_json(folder / INDEX, shard_index(names, shards), sort_keys=True)


def _draw(tensors: Iterator[tuple[Tensor, Start]], seed: int) -> Iterator[memoryview]:
    for shape, start in tensors:
        value = torch.empty_like(shape, device="cpu", requires_grad=False)
        with torch.no_grad():
            start.fill(value, seed=seed)
        yield value.flatten().view(torch.uint8).numpy().data


def _header(shard: Mapping[str, Tensor]) -> bytes:
    """What a safetensors file begins with: 8 bytes of length, then JSON, padded to a multiple of 8."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in shard.items():
        table[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    content = json.dumps(table, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content
