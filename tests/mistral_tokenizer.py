"""The tokenizer folder of Idefics2, built from the real Mistral-7B-v0.1 SentencePiece model.

That model ships inside the PyPI package `mistral-common`. The folder is what transformers 4.40 makes of it (the golden
file holds the digest of its `tokenizer.json`): Prepend + Replace normaliser, byte-fallback BPE, no pre-tokeniser.

    python tests/mistral_tokenizer.py FOLDER [--base]
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

FAKE, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"


def sentencepiece_model() -> Path:
    """The file inside mistral-common, found without importing that package."""
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "tokenizer.model.v1"


def _merges(scores: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best piece first: what SentencePiece's BPE does, spelled out."""
    ranked = []
    for piece, score in scores.items():
        ways = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        ranked += [(-score, pair) for pair in sorted(ways, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    return [pair for _, pair in sorted(ranked, key=lambda entry: entry[0])]


def backend(*, end_of_utterance: bool = True) -> Tokenizer:
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model()))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: model.get_score(i) for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(ids, _merges(scores, ids), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    added = ["<unk>", "<s>", "</s>", FAKE, IMAGE, *([END] if end_of_utterance else [])]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added])
    return tokenizer


def tokenizer_config(*, end_of_utterance: bool = True) -> dict[str, Any]:
    """`tokenizer_config.json` as the checkpoints of 2024 have it."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 32000: FAKE, 32001: IMAGE, **({32002: END} if end_of_utterance else {})}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): {"content": token, **flags} for i, token in names.items()},
        "additional_special_tokens": [token for i, token in names.items() if i >= 32000],
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<unk>",
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def portable_json(tokenizer: Tokenizer) -> str:
    """`tokenizer.json` with merges as texts, as every release of tokenizers reads them."""
    content = json.loads(tokenizer.to_str())
    merges = content["model"]["merges"]
    content["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return json.dumps(content, ensure_ascii=False)


def digest(text: str) -> str:
    """A digest of a `tokenizer.json` that ignores what a release writes or leaves out: order of keys, form of merges, nulls."""
    content = json.loads(text)
    model = content["model"]
    model["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    model = {key: model[key] for key in ("type", "unk_token", "fuse_unk", "byte_fallback", "vocab", "merges")}
    kept = {key: content[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")}
    return hashlib.sha256(json.dumps({**kept, "model": model}, sort_keys=True).encode()).hexdigest()


def build(folder: Path, *, end_of_utterance: bool = True) -> Path:
    """Writes the three tokenizer files to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tokenizer_config(end_of_utterance=end_of_utterance)
    (folder / "tokenizer.json").write_text(portable_json(backend(end_of_utterance=end_of_utterance)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens")
    (folder / "special_tokens_map.json").write_text(json.dumps({name: config[name] for name in names}), encoding="utf-8")
    return folder


def build_checkpoint(folder: Path, *, end_of_utterance: bool = True, do_image_splitting: bool = True) -> Path:
    """The tokenizer folder with the image files of 2024 beside it: all that a processor reads."""
    build(folder, end_of_utterance=end_of_utterance)
    preprocessor = {
        "do_convert_rgb": True, "do_image_splitting": do_image_splitting, "do_normalize": True, "do_pad": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Idefics2ImageProcessor", "processor_class": "Idefics2Processor", "resample": 2,
        "rescale_factor": 0.00392156862745098, "size": {"longest_edge": 980, "shortest_edge": 378},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")
    (folder / "processor_config.json").write_text(
        '{"image_seq_len": 64, "processor_class": "Idefics2Processor"}', encoding="utf-8"
    )
    return folder


def build_checkpoint_of_2023(folder: Path, *, end_of_utterance: bool = True) -> Path:
    """A processor folder of the first IDEFICS: what transformers 4.32 wrote, before `added_tokens_decoder`."""
    build(folder, end_of_utterance=end_of_utterance)
    config = tokenizer_config(end_of_utterance=end_of_utterance)
    listed = {"content": "", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    added = {entry["content"]: int(i) for i, entry in config["added_tokens_decoder"].items() if int(i) >= 32000}
    names = ("bos_token", "eos_token", "unk_token")
    special = {name: {**listed, "content": config[name]} for name in names}
    old = {name: {"__type": "AddedToken", **special[name]} for name in names}
    kept = {key: config[key] for key in ("add_bos_token", "add_eos_token", "model_max_length", "tokenizer_class")}
    preprocessor = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_num_channels": 3,
        "image_processor_type": "IdeficsImageProcessor", "image_size": 224,
        "image_std": [0.26862954, 0.26130258, 0.27577711], "processor_class": "IdeficsProcessor",
    }  # fmt: skip
    files = {
        "added_tokens.json": added,
        "special_tokens_map.json": {"additional_special_tokens": list(added), **special, "pad_token": "<unk>"},
        "tokenizer_config.json": {**kept, **old, "pad_token": None, "padding_side": "left", "sp_model_kwargs": {}},
        "preprocessor_config.json": preprocessor,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


@functools.cache
def checkpoint_of_2023(*, end_of_utterance: bool = True) -> Path:
    """As `checkpoint`, of the first IDEFICS."""
    folder = Path(tempfile.mkdtemp(prefix="idefics-2023-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build_checkpoint_of_2023(folder, end_of_utterance=end_of_utterance)


@functools.cache
def checkpoint(*, end_of_utterance: bool = True) -> Path:
    """A processor folder, built once per session and removed at its end; do not write to it."""
    folder = Path(tempfile.mkdtemp(prefix="idefics-tokenizer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build_checkpoint(folder, end_of_utterance=end_of_utterance)


if __name__ == "__main__":
    build_checkpoint(Path(sys.argv[1]), end_of_utterance="--base" not in sys.argv)
