"""Ids to text while they arrive, without ever showing text that a later id would change.

Three things can still change the end of a text: bytes that are not yet a whole character (byte tokens run together, and
one bad byte spoils its whole run), spaces that clean-up may remove, and the beginning of a stop string. Each is held
back until it is settled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from idefics.errors import OptionError
from idefics.processor.characters import require_characters
from idefics.processor.tokenizer import Tokenizer, clean_up_spaces

__all__ = ["TextStream"]

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_HALF = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 8  # settled tokens kept before the new ones, so that a step costs the same at any length
# Clean-up patterns begin with a space and hold only these characters.
_CLEAN_UP_TAIL = re.compile(r"[ .?!,'ntmsvre]*\Z")


class TextStream:
    """Turns ids into pieces of text whose concatenation is `tokenizer.decode` of all the ids; see `inside` for the other case.

    Args:
        tokenizer: that of the model.
        skip_special_tokens: leave special tokens out of the text.
        clean_up_tokenization_spaces: None follows the tokenizer.
        stop: the text ends before the one of these that is complete first; a beginning of one is held back.
        inside: the text goes on with another one; decoders that drop the space before a text's first word keep it then.

    Attributes:
        stopped: the stop string that ended the text, or None.

    Example::

        stream = TextStream(tokenizer)
        for token_id in ids:
            print(stream.push(token_id), end="")
        print(stream.finish())
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
        stop: str | Sequence[str] = (),
        inside: bool = False,
    ) -> None:
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._skip = set(tokenizer.all_special_ids) if skip_special_tokens else set()
        clean = clean_up_tokenization_spaces
        self._clean = tokenizer.clean_up_tokenization_spaces if clean is None else clean
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(self._stop):
            raise OptionError("an empty stop string would end every text at once")
        for one in self._stop:
            require_characters(one, "a stop string")
        # Context: ids whose text has been passed on, or any text at all, as only a decoder's first token is special to it.
        self._settled = tokenizer.encode("a", add_special_tokens=False) if inside else []
        self._before = self._length(self._settled)
        self._pending: list[int] = []  # ids whose text may still change
        self._raw = ""  # text passed on by the decoder, held by clean-up
        self._held = ""  # text that may be the beginning of a stop string

    def push(self, ids: int | Sequence[int]) -> str:
        """Takes the next id or ids and returns the text that is now certain, often one word, sometimes nothing."""
        if self.stopped is not None:
            return ""
        new = [ids] if isinstance(ids, int) else list(ids)
        self._pending += [i for i in new if i not in self._skip]
        return self._through_stop(self._through_clean_up(self._decode_settled(), last=False), last=False)

    def finish(self) -> str:
        """Returns what was held back, as `decode` shows it; an unfinished character shows as U+FFFD."""
        if self.stopped is not None:
            return ""
        text, self._pending = self._difference(self._pending), []
        return self._through_stop(self._through_clean_up(text, last=True), last=True)

    def _decode_settled(self) -> str:
        if not self._pending or self._is_byte(self._pending[-1]):
            return ""
        text = self._difference(self._pending)
        if text.endswith(_HALF):
            return ""
        self._settled += self._pending
        self._before += len(text)
        self._pending = []
        self._shorten_context()
        return text

    def _difference(self, ids: list[int]) -> str:
        """The text that `ids` add after the settled ones."""
        return self._tokenizer.backend.decode(self._settled + ids, skip_special_tokens=False)[self._before :]

    def _shorten_context(self) -> None:
        """Drops old context, keeping enough that decoders which treat the first token apart have their first token."""
        if len(self._settled) > 2 * _CONTEXT:
            short = self._settled[-_CONTEXT:]
            if length := self._length(short):
                self._settled, self._before = short, length

    def _length(self, ids: list[int]) -> int:
        """Characters of the ids' text."""
        return len(self._tokenizer.backend.decode(ids, skip_special_tokens=False))

    def _is_byte(self, token_id: int) -> bool:
        token = self._tokenizer.backend.id_to_token(token_id)
        return token is not None and _BYTE.fullmatch(token) is not None

    def _through_clean_up(self, text: str, *, last: bool) -> str:
        if not self._clean:
            return text
        self._raw += text
        tail = _CLEAN_UP_TAIL.search(self._raw)
        assert tail is not None
        space = self._raw.find(" ", tail.start())
        cut = len(self._raw) if last or space < 0 else space
        ready, self._raw = self._raw[:cut], self._raw[cut:]
        return clean_up_spaces(ready)

    def _through_stop(self, text: str, *, last: bool) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first: the same however the ids were pushed
            _, at, self.stopped = min(found)
            ready, self._held = self._held[:at], ""
            return ready
        cut = len(self._held) if last else len(self._held) - self._beginning()
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def _beginning(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = min(len(self._held), max(map(len, self._stop)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)
