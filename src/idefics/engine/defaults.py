"""A checkpoint's own generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idefics.config import Config
from idefics.config.json_files import read_json
from idefics.config.keys import Keys
from idefics.config.rules import brief
from idefics.engine.options import ABSENT, ALIASES, OPTIONS
from idefics.engine.sampling_params import unknown_defaults
from idefics.errors import ConfigError, OptionError

__all__ = ["generation_defaults"]


def generation_defaults(folder: Path, config: Config, *, keys: Keys | None = None) -> dict[str, Any]:
    """The content of `generation_config.json`, or, where there is none, the ends that the model's config names.

    Args:
        folder: of the checkpoint.
        config: of the model.
        keys: lets unknown ones pass, or does not; None does not. Those of the reference that are known and not offered are
            refused all the same.

    Raises:
        ConfigError: the file asks for something that would change the output and is not offered, or a value is unusable.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return {"eos_token_id": config.text_config.eos_token_id, "pad_token_id": config.text_config.pad_token_id}
    found = read_json(path)
    asking = unknown_defaults(found)
    refused = [name for name in asking if name in ABSENT]
    if refused:
        asked = ", ".join(f"{name} = {brief(found[name])}" for name in refused)
        raise ConfigError(f"{path} asks for {asked}, which this version does not offer; remove it to go on without")
    (keys or Keys(allow_unknown=False)).admit(str(path), {name: found[name] for name in asking})
    _check(path, found)
    return found


def _check(path: Path, found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        option = OPTIONS.get(ALIASES.get(name, name))
        if option is None or value is None:
            continue
        idle = option.draws and found.get("do_sample") is not True  # files say 0 or -1 there, and nothing comes of it
        try:
            option.read(value, name=name, kind_only=idle)
        except OptionError as error:
            raise ConfigError(f"{path}: {error}") from None
