"""Chat messages: checked, brought to one form, and parted from the images they carry.

The form is the one that Idefics2's template reads: content is a list of parts, `{"type": "text", "text": ...}` or
`{"type": "image"}`. A string as content means one text part. Image parts may carry their image:

    {"type": "image", "image": <Pillow image, path, URL, array>}    also "url", "path" or "base64"
    {"type": "image_url", "image_url": {"url": "https://..."}}      the OpenAI form; "detail" is ignored
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idefics.errors import ImageCountError, TemplateError
from idefics.processor.characters import require_characters

__all__ = ["fill_images", "normalise"]

_DEPTH = 100
_IGNORED = ("cache_control",)  # of others' APIs; beginnings are found again here without being told
_CARRIERS = ("image", "url", "path", "base64")


def normalise(messages: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages in the template's form, and the image of every image part in reading order.

    Args:
        messages: a list of `{"role": ..., "content": ...}`.

    Returns:
        The messages as plain data, and one entry per image part: what it carries, or None if it carries nothing.

    Raises:
        TemplateError: names the message, and the part and key in it.
        InputError: a text holds half a surrogate pair.

    >>> normalise([{"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": "Hi"}]}])
    ([{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Hi'}]}], ['a.png'])
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TemplateError(f"messages must be a list of {{'role': ..., 'content': ...}}, not {type(messages).__name__}")
    if not messages:
        raise TemplateError("messages is empty; give at least one message")
    images: list[Any] = []
    return [_message(message, f"messages[{i}]", images) for i, message in enumerate(messages)], images


def fill_images(carried: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """The images of a chat: those that its parts carry, and those given apart, in order, for the parts that carry none.

    Raises:
        ImageCountError: more or fewer given than there are parts without an image.
    """
    empty = sum(image is None for image in carried)
    if empty != len(given):
        raise ImageCountError(placeholders=empty, images=len(given), where="the chat")
    rest = iter(given)
    return [next(rest) if image is None else image for image in carried]


def _message(message: Any, where: str, images: list[Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(f"{where} must be a mapping with 'role' and 'content', not {type(message).__name__}")
    for key in ("role", "content"):
        if message.get(key) is None:
            raise TemplateError(f"{where} has no {key!r}; a message is {{'role': ..., 'content': ...}}")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not role:
        raise TemplateError(f"{where}['role'] must be a text such as 'user' or 'assistant', not {role!r}")
    if isinstance(content, str):
        parts: list[dict[str, Any]] = [_text(content, f"{where}['content']")]
    elif isinstance(content, Sequence) and not isinstance(content, bytes) and content:
        parts = [_part(part, f"{where}['content'][{j}]", images) for j, part in enumerate(content)]
    else:
        raise TemplateError(f"{where}['content'] must be a text or a list of at least one part, not {_brief(content)}")
    require_characters(role, f"{where}['role']")
    extra = {str(key): _plain(value, f"{where}[{key!r}]") for key, value in message.items() if key not in ("role", "content")}
    return {"role": role, "content": parts, **extra}


def _part(part: Any, where: str, images: list[Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return _text(part, where)
    if not isinstance(part, Mapping):
        raise TemplateError(f"{where} must be a mapping with 'type', not {type(part).__name__}")
    fields = {key: value for key, value in part.items() if value is not None}  # tables fill absent keys with None
    kind = fields.pop("type", None)
    if kind == "text":
        text = fields.pop("text", None)
        if not isinstance(text, str):
            raise TemplateError(f"{where}['text'] must be a text, not {_brief(text)}")
        result = _text(text, f"{where}['text']")
    elif kind in ("image", "image_url"):
        images.append(_carried(kind, fields, where))
        result = {"type": "image"}
    else:
        raise TemplateError(f"{where}['type'] must be 'text', 'image' or 'image_url', not {_brief(kind)}")
    fields = {key: value for key, value in fields.items() if _says_something(value) and key not in _IGNORED}
    if fields:
        raise TemplateError(f"{where} of type {kind!r} has unknown key(s): {', '.join(map(repr, sorted(map(str, fields))))}")
    return result


def _text(text: str, where: str) -> dict[str, Any]:
    require_characters(text, where)
    return {"type": "text", "text": text}


def _carried(kind: str, fields: dict[str, Any], where: str) -> Any:
    """Takes the image out of a part's fields; None if it carries none."""
    if kind == "image_url":
        url = fields.pop("image_url", None)
        url = url.get("url") if isinstance(url, Mapping) else url
        if not isinstance(url, str):
            raise TemplateError(f"{where}['image_url'] must be {{'url': ...}}, not {_brief(url)}")
        return url
    found = [key for key in _CARRIERS if key in fields]
    if len(found) > 1:
        raise TemplateError(f"{where} carries its image {len(found)} times: {', '.join(map(repr, found))}; give one of them")
    return fields.pop(found[0]) if found else None


def _says_something(value: Any) -> bool:
    """Whether the value of a key that nobody knows asks for anything: null, false, 0 and what is empty do not."""
    return not (value is None or (type(value) in (bool, int, float, str, list, tuple, dict) and not value))


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    if depth > _DEPTH:
        raise TemplateError(f"{where[:60]}... holds lists and mappings more than {_DEPTH} deep within each other")
    if isinstance(value, str):
        require_characters(value, where)
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise TemplateError(f"{where} must be plain data (text, number, list, mapping), not {type(value).__name__}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
