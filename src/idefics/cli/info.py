"""`idefics info`: what a model is."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from idefics.assets import EMBEDDED_NAME
from idefics.cli.terminal import one_line, say
from idefics.config import Config
from idefics.config.json_files import read_json
from idefics.config.keys import Keys
from idefics.config.presets import preset, preset_names
from idefics.config.rules import brief
from idefics.errors import CheckpointNotFound
from idefics.machine.byte_sizes import readable_bytes
from idefics.machine.dtypes import dtype_named
from idefics.plan import preset_named, published_images
from idefics.processor.base import Images
from idefics.weights.files import resolve
from idefics.weights.footprint import kv_bytes_per_token, parameter_counts

__all__ = ["info"]


def info(
    model: Annotated[
        str | None, Argument(help="Folder, Hub id or preset; left out: the embedded model.", show_default=False)
    ] = None,
    *,
    revision: Annotated[str | None, Option("--revision", help="Of a Hub id.", show_default=False)] = None,
    offline: Annotated[bool, Option("--offline", help="Use only what is downloaded already.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model is: parameters by part, dtype, files, tokenizer, image settings, generation defaults.

    Of a Hub id only the small files are fetched; where there is no network, a preset of its name is shown.
    """
    folder, config = _find(model, revision=revision, offline=offline)
    name = model or EMBEDDED_NAME
    facts = _of_config(name, config) | (_of_folder(folder, config) if folder is not None else _of_preset(config))
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _show(facts)


def _find(model: str | None, *, revision: str | None, offline: bool) -> tuple[Path | None, Config]:
    from idefics.weights.load import load_config

    if model in preset_names() and model != EMBEDDED_NAME and not Path(model).exists():
        return None, preset(model)
    try:
        folder = resolve(model, revision=revision, offline=offline, weights=False, progress=sys.stderr.isatty())
    except CheckpointNotFound as error:
        config = None if model is None else preset_named(model)
        if config is None:
            raise
        say(f"{one_line(error)}; showing the preset of that name")
        return None, config
    return folder, load_config(folder, allow_unknown=True)  # to show it is not to use it


def _of_config(name: str, config: Config) -> dict[str, Any]:
    import torch

    vision, text, side = config.vision_config, config.text_config, config.square_side
    seen = "(sub-)image" if side is None else "image"
    dtype: torch.dtype = dtype_named(config.dtype)
    counts = parameter_counts(config)
    return {
        "model": name,
        "type": config.model_type,
        "parameters": {**counts, "total": sum(counts.values())},
        "dtype": config.dtype,
        "not understood": _not_understood(config.unknown),
        "weights": readable_bytes(sum(counts.values()) * dtype.itemsize),
        "KV cache per token": readable_bytes(kv_bytes_per_token(config, dtype)),
        "vision tower": f"{vision.num_hidden_layers} layers of {vision.hidden_size}, patches of {vision.patch_size} pixels, "
        + (f"up to {vision.image_size} pixels" if side is None else f"squares of {side} pixels"),
        "resampler": f"{config.resampler_layers} layers, {config.latents} latents per {seen}"
        if config.resampler_layers
        else None,
        "cross-attention": f"{config.cross_layers} gated blocks" if config.cross_layers else None,
        "decoder": f"{text.num_hidden_layers} layers of {text.hidden_size}, {text.num_attention_heads} heads "
        f"({text.num_key_value_heads} for keys and values), vocabulary {text.vocab_size}, "
        f"{text.max_position_embeddings} positions" + (f", window {text.sliding_window}" if text.sliding_window else ""),
    }


def _of_preset(config: Config) -> dict[str, Any]:
    return {"folder": None, "images": _shown(published_images(config))}


def _of_folder(folder: Path, config: Config) -> dict[str, Any]:
    from idefics.processor.families import load_processor

    keys = Keys(allow_unknown=True)
    processor = load_processor(folder, keys=keys)
    tokenizer = processor.tokenizer
    path = folder / "generation_config.json"
    return {
        "folder": str(folder),
        "not understood": _not_understood({**config.unknown, **keys.passed}),
        "files": {file.name: readable_bytes(file.stat().st_size) for file in sorted(folder.iterdir()) if file.is_file()},
        "tokenizer": {
            "tokens": len(tokenizer),
            **tokenizer.special_tokens,
            "<fake_token_around_image>": processor.fake_image_token_id,
            processor.image_token: processor.image_token_id,
            "<end_of_utterance>": processor.end_of_utterance_id,
            "chat template": processor.chat_template is not None,
        },
        "images": _shown(processor.image_processor),
        "generation": read_json(path) if path.is_file() else {},
    }


def _not_understood(unknown: Mapping[str, Any]) -> dict[str, str] | None:
    return {key: brief(value) for key, value in unknown.items()} or None


def _shown(images: Images) -> dict[str, Any]:
    """Of the settings of images those that people change."""
    settings = images.to_dict()
    chosen = {name: settings[name] for name in ("image_size", "do_image_splitting") if name in settings}
    return {**settings.get("size", {}), **chosen}


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is None:
            continue
        if not isinstance(value, dict):
            table.add_row(name, str(value))
            continue
        for index, (key, item) in enumerate(value.items()):
            shown = f"{item:,}" if name == "parameters" else str(item)
            table.add_row(name if index == 0 else "", f"{key}: {shown}")
    Console().print(table, highlight=False, markup=False)
