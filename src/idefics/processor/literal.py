"""Special tokens in what people write, which in a chat are text: turns and images are made by the template alone.

A template makes one string of a chat, and a tokenizer reads every `</s>` in it as the token, whoever wrote it. So a chat's
prompt holds a mark inside each special token's name that comes from a message, and none anywhere else. With the mark no
tokenizer takes the name for the token; once tokens have been found, it is dropped (`Tokenizer.read`), and what stands there is
read as the characters that it is.

Who wrote what is found by rendering twice: as it is, and with other characters in the place of those that special tokens are
made of, in messages only. The special tokens of the second are the template's own. So a name counts as text wherever a message
has a share in it, whether it came whole, in parts that the template joins, or out of spaces that it drops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Backend

from idefics.errors import InputError, TemplateError
from idefics.processor.characters import require_characters

__all__ = ["MARK", "Chat", "literal_prompt", "reader_of", "require_readable", "unmarked"]

MARK = "\udfff"
"""Half a surrogate pair: no text that anybody writes in UTF-8 can hold it."""

Chat = Sequence[Mapping[str, Any]]

_PRIVATE = range(0xF_0000, 0x11_0000)  # characters that no template looks for
_READ = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # characters of no script and no vocabulary


def unmarked(text: str) -> str:
    """The text without marks: for people."""
    return text.replace(MARK, "")


def literal_prompt(render: Callable[[Chat], str], chat: Chat, backend: Backend) -> str:
    """The prompt of a chat, with marks in the special tokens' names that its messages hold.

    Args:
        render: makes a prompt of a chat.
        chat: plain data.
        backend: whose special tokens they are. An added token that it does not call special counts as one where the template
            writes it and it is no word: its `<turn>` begins a turn, too.

    Raises:
        TemplateError: of `render`; or the template changes with what texts hold, so that nobody can tell whose a token is; or
            a text holds what becomes a special token by the tokenizer's normaliser only.
    """
    prompt = render(chat)
    added = list(backend.get_added_tokens_decoder().values())
    names = {token.content for token in added if token.special}
    signs = {token.content for token in added if not token.special and _is_sign(token.content)}
    late = {token.content for token in added if token.special and token.normalized}
    if not late and not any(name in prompt for name in names | signs):
        return prompt
    taken = set(prompt)
    free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
    there = {ord(letter): other for letter, other in zip(sorted(set("".join(names | signs))), free, strict=False)}
    back = {ord(other): chr(letter) for letter, other in there.items()}
    try:
        other = render(_replaced(chat, there, names | signs))
    except TemplateError:
        other = ""
    names |= {sign for sign in signs if sign in other}
    if other.translate(back) == prompt:
        return _checked(_marked(prompt, other, names), other, late, backend)
    spoken = "".join(_texts(chat))
    if any(name in spoken or prompt.count(name) != other.count(name) for name in names):
        raise TemplateError("a message holds a special token, and the chat template changes with what messages hold")
    return _checked(prompt, other, late, backend)


def reader_of(backend: Backend, text: str) -> tuple[Backend, str]:
    """A tokenizer like `backend` that reads marks, and the text as it takes it: of as many characters.

    Raises:
        InputError: the text holds all that could stand for a mark.
    """
    mark = next((each for each in _READ if each not in text), None)
    if mark is None:
        raise InputError(f"a text holds all of U+FDD0 to U+FDEF, which are no characters, and {MARK!r}; leave one of them out")
    reader = Backend(backend.model)  # which is shared: this takes 50 microseconds
    drop = normalizers.Replace(mark, "")
    reader.normalizer = drop if backend.normalizer is None else normalizers.Sequence([drop, backend.normalizer])
    for part in ("pre_tokenizer", "post_processor"):
        if getattr(backend, part) is not None:
            setattr(reader, part, getattr(backend, part))
    for token_id, token in sorted(backend.get_added_tokens_decoder().items()):
        same = AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized and not token.special,  # found before the mark is dropped, in any case
            special=token.special,
        )
        (reader.add_special_tokens if token.special else reader.add_tokens)([same])
        assert reader.token_to_id(token.content) == token_id, token.content
    return reader, text.replace(MARK, mark)


def require_readable(text: str, backend: Backend) -> None:
    """Refuses half a surrogate pair, but for marks inside the names of tokens, as `literal_prompt` sets them.

    Raises:
        InputError: names it and its place.
    """
    if MARK not in text:
        require_characters(text, "a text")
        return
    pieces = text.split(MARK)
    whole = "".join(pieces)
    require_characters(whole, "a text")
    contents = [token.content for token in backend.get_added_tokens_decoder().values()]
    names = "|".join(map(re.escape, sorted(contents, key=len, reverse=True)))  # of those that begin alike the longest
    spans = [match.span(1) for match in re.finditer(f"(?=({names}))", whole)] if names else []
    place = 0
    for piece in pieces[:-1]:
        place += len(piece)
        if not any(start < place < end for start, end in spans):
            require_characters(MARK, f"a text, after {whole[max(0, place - 20) : place]!r},")


def _is_sign(content: str) -> bool:
    """Whether an added token looks like one that parts texts, not like a word or a space."""
    return len(content) > 2 and not any(map(str.isspace, content)) and not (content[0].isalnum() or content[-1].isalnum())


def _replaced(value: Any, there: Mapping[int, str], names: Collection[str], key: str = "") -> Any:
    """A chat in which messages hold no character that special tokens are made of; words that name things stay."""
    if isinstance(value, Mapping):
        return {_other(name, there, names): _replaced(item, there, names, name) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_replaced(item, there, names) for item in value]
    if not isinstance(value, str):
        return value
    return _other(value, there, names) if key in ("role", "type") else value.translate(there)


def _other(word: str, there: Mapping[int, str], names: Collection[str]) -> str:
    names_a_thing = word.isidentifier() and not any(name in word for name in names)
    return word if names_a_thing else word.translate(there)


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in _texts(item)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _checked(prompt: str, other: str, late: Collection[str], backend: Backend) -> str:
    """The prompt, if no message holds what only a normaliser makes special tokens of: those of `late` are found after it."""
    if late and backend.normalizer is not None:
        normal = backend.normalizer.normalize_str
        found, own = normal(prompt.replace(MARK, _READ[0])), normal(other)
        for name in map(normal, late):
            if found.count(name) != own.count(name):
                raise TemplateError(f"a message holds what this tokenizer's normaliser makes {name!r} of, a special token")
    return prompt


def _marked(prompt: str, other: str, names: Collection[str]) -> str:
    """The prompt with a mark in every name that is none in `other`, which has the same length."""
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    own = [match.span() for match in re.finditer(longest_first, other)]
    inside = {at: end for start, end in own for at in range(start + 1, end)}
    kept = dict(own)
    marks: set[int] = set()
    for match in re.finditer(f"(?=({longest_first}))", prompt):
        start, end = match.span(1)
        if start not in inside and kept.get(start) != end:
            marks.add(inside.get(start + 1, start + 1))
    edges = [0, *sorted(marks), len(prompt)]
    return MARK.join(prompt[start:end] for start, end in pairwise(edges))
