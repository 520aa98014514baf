"""Keys that clients must bear."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from idefics.errors import OptionError

__all__ = ["bears", "checked_keys"]


def checked_keys(keys: Iterable[str]) -> list[str]:
    """The keys, if a client can send each of them.

    Raises:
        OptionError: one is empty, so that anybody has it, or holds what cannot stand in a header, so that nobody has.
    """
    checked = list(keys)
    for number, key in enumerate(checked, start=1):
        if not key:
            raise OptionError(f"API key {number} of {len(checked)} is empty; leave it out or give one")
        # The key itself is not told: this line ends up in logs.
        if not all("!" <= character <= "~" for character in key):
            raise OptionError(
                f"API key {number} of {len(checked)}, of {len(key)} characters, holds blanks or characters beyond ASCII; "
                "use letters, digits and signs, and give --api-key once for each key"
            )
    return checked


def bears(authorization: str, keys: Sequence[str]) -> bool:
    """Whether a header's value bears one of the keys; it takes as long whichever it is."""
    scheme, _, given = authorization.partition(" ")
    known = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    return scheme.lower() == "bearer" and any(known)
