"""Options of a call that a processor does not have: accepted where they change nothing, refused by name otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from idefics.errors import OptionError

__all__ = ["NEUTRAL", "asking", "check_left_over", "plain"]

_FALSE = (False,)
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # of texts
    "is_split_into_words": _FALSE,
    "pad_to_multiple_of": (0, 1),
    "return_attention_mask": (True,),
    "return_length": _FALSE,
    "return_mm_token_type_ids": _FALSE,
    "return_offsets_mapping": _FALSE,
    "return_overflowing_tokens": _FALSE,
    "return_special_tokens_mask": _FALSE,
    "return_token_type_ids": _FALSE,
    "split_special_tokens": _FALSE,
    "stride": (0,),
    "verbose": (True, False),
    # of images
    "data_format": ("channels_first",),
    "device": ("cpu",),
    "disable_grouping": (True, False),
    "do_center_crop": _FALSE,
    # of chats
    "documents": ([],),
    "load_audio_from_video": _FALSE,
    "processor_kwargs": ({},),
    "return_assistant_tokens_mask": _FALSE,
    "sanitize_control_tokens": _FALSE,
    "tools": ([],),
    # of other modalities, and options in groups
    "audio": ([],),
    "videos": ([],),
    "common_kwargs": ({},),
    "images_kwargs": ({},),
    "text_kwargs": ({},),
    # of saving
    "push_to_hub": _FALSE,
    "legacy_format": (True, False),
}
"""Options of the reference's, and the values with which they ask for nothing; None always does."""


def check_left_over(
    what: str, options: Mapping[str, Any], *, there: Iterable[str], neutral: Mapping[str, tuple[Any, ...]] | None = None
) -> None:
    """Refuses options that nobody took, unless they change nothing.

    Args:
        what: who was called.
        options: what is left of the call's.
        there: the options that there are.
        neutral: further values that change nothing, of this callee.

    Raises:
        OptionError: names the first, and the options that there are.
    """
    harmless = {**NEUTRAL, **(neutral or {})}
    for name, value in asking(options, harmless).items():
        known = f"only {harmless[name][0]!r} is offered" if harmless.get(name) else f"there are {', '.join(sorted(there))}"
        raise OptionError(f"{what}: {name} = {value!r} is not offered; {known}")


def asking(options: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> dict[str, Any]:
    """Those options that ask for something."""

    def asks(value: Any, harmless: tuple[Any, ...]) -> bool:
        return value is not None and not (isinstance(value, bool | int | float | str | list | dict) and value in harmless)

    return {name: value for name, value in options.items() if asks(plain(value), neutral.get(name, ()))}


def plain(value: Any) -> Any:
    """A number or list of numpy's or torch's as Python's own; anything else as it is.

    >>> import numpy
    >>> plain(numpy.int64(3)), plain(numpy.bool_(True)), plain("text")
    (3, True, 'text')
    """
    return value.tolist() if hasattr(value, "tolist") else value
