"""A model's own settings of `generate`: the content of a `generation_config.json`, by name and as attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from idefics.engine.options import ALIASES, OPTIONS, not_taken
from idefics.engine.sampling_params import unknown_defaults
from idefics.errors import OptionError
from idefics.processor.call_options import plain

__all__ = ["GenerationSettings", "settings_in"]


class GenerationSettings(dict[str, Any]):
    """Settings as attributes: what is not set is None; what is set holds for every later `generate`, and is saved.

    >>> settings = GenerationSettings(eos_token_id=2)
    >>> settings.max_new_tokens = 3
    >>> settings.eos_token_id, settings.max_new_tokens, settings.top_p
    (2, 3, None)
    >>> settings.temprature = 0.5
    Traceback (most recent call last):
    idefics.errors.OptionError: unknown generation option 'temprature'; did you mean 'temperature'?
    """

    @classmethod
    def of(cls, given: Any) -> Self:
        """Settings from a mapping, or an object with `to_dict`.

        Raises:
            OptionError: it is neither, or asks for what is not offered.
        """
        made = cls()
        made.update(settings_in(given))
        return made

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in OPTIONS or name in ALIASES:
            return None
        raise AttributeError(f"no generation option {name!r}; there are {', '.join(OPTIONS)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        self.pop(name, None)

    def __setitem__(self, name: str, value: Any) -> None:
        value = plain(value)  # what is saved is JSON
        for unknown in unknown_defaults({name: value}):
            not_taken(unknown, value)
        if value is not None and name in OPTIONS:
            OPTIONS[name].read(value)
        super().__setitem__(name, value)

    def update(self, *given: Any, **named: Any) -> None:
        """Sets several."""
        for name, value in dict(*given, **named).items():
            self[name] = value

    def to_dict(self) -> dict[str, Any]:
        """As a plain dict."""
        return dict(self)


def settings_in(given: Any) -> dict[str, Any]:
    """What a mapping or an object of the reference's says of `generate`; None says nothing.

    Raises:
        OptionError: it is neither.
    """
    if given is None:
        return {}
    # What differs from the reference's defaults, where the object can say: release 4 has some that are not None.
    told = getattr(given, "to_diff_dict", None) or getattr(given, "to_dict", None)
    found = given if isinstance(given, Mapping) or told is None else told()
    if not isinstance(found, Mapping):
        raise OptionError(f"generation_config must be a mapping, not {type(found).__name__}")
    return {name: value for name, value in found.items() if value is not None}
