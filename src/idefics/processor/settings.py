"""The image settings of a checkpoint folder, wherever its era put them, and whose they are.

In 2023 and 2024 they had a file of their own, `preprocessor_config.json`; transformers 5 nests them in
`processor_config.json`. Both say which family they are of: pixels made by the other family's rules would be wrong
without any error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from idefics.config.json_files import read_json
from idefics.config.rules import brief
from idefics.errors import ConfigError, OptionError

__all__ = ["INERT", "check_options", "check_owner", "image_settings_of", "processor_settings_of"]

INERT = frozenset(
    (
        "_processor_class",
        "_valid_processor_keys",
        "auto_map",
        "crop_size",
        "default_to_square",
        "device",
        "disable_grouping",
        "feature_extractor_type",
        "image_processor_type",
        "image_seq_length",
        "input_data_format",
        "pad_size",
        "processor_class",
        "return_tensors",
    )
)
"""Keys that published image settings carry and that change nothing here."""

_SUFFIXES = ("", "Fast", "Pil")  # of image processors: the reference's several implementations of one thing


def image_settings_of(folder: Path, *, family: str) -> tuple[Mapping[str, Any], str]:
    """The image settings of a folder, and where they stand, as errors say it.

    Args:
        folder: with a `processor_config.json`, a `preprocessor_config.json` or both.
        family: `"Idefics"` or `"Idefics2"`, as published class names begin.

    Raises:
        CheckpointNotFound: neither file has any.
        ConfigError: they are no object, or another family's.
    """
    where = f"{folder / 'processor_config.json'}: image_processor"
    section = processor_settings_of(folder, family=family).get("image_processor")
    if section is None:
        path = folder / "preprocessor_config.json"
        section, where = read_json(path), str(path)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where} must be an object, not {brief(section)}")
    check_owner(section, family=family, where=where)
    return section, where


def processor_settings_of(folder: Path, *, family: str) -> Mapping[str, Any]:
    """The content of `processor_config.json`; empty if there is none.

    Raises:
        ConfigError: it is another family's, or its `image_seq_len` is no positive whole number.
    """
    path = folder / "processor_config.json"
    config = read_json(path) if path.is_file() else {}
    check_owner(config, family=family, where=str(path))
    length = config.get("image_seq_len")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ConfigError(f"{path}: image_seq_len must be a positive whole number, not {brief(length)}")
    return config


def check_owner(raw: Mapping[str, Any], *, family: str, where: str) -> None:
    """Refuses settings that name another family's classes; settings that name none pass.

    Raises:
        ConfigError: names both classes.
    """
    for key, kind, suffixes in (("processor_class", "Processor", ("",)), ("image_processor_type", "ImageProcessor", _SUFFIXES)):
        due, found = f"{family}{kind}", raw.get(key)
        if found is not None and found not in [f"{due}{suffix}" for suffix in suffixes]:
            raise ConfigError(f"{where}: {key} = {brief(found)}, not {due!r}; these are the files of another model's processor")


def check_options(given: Iterable[str], known: Iterable[str], *, what: str) -> None:
    """Refuses options that there are not.

    Raises:
        OptionError: names them, and those that there are.
    """
    there = set(known)
    unknown = sorted(set(given) - there)
    if unknown:
        raise OptionError(f"unknown {what} option(s): {', '.join(unknown)}; there are {', '.join(sorted(there))}")
