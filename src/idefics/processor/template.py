"""Chat templates: finding a checkpoint's own, and rendering it in a sandbox.

Templates come with checkpoints and are code: they run in a sandbox (`sandbox.py`) and see nothing but plain data.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.exceptions import SecurityError

from idefics.config.json_files import read_json
from idefics.config.rules import brief
from idefics.config.whole_files import read_whole
from idefics.errors import ConfigError, TemplateError
from idefics.processor.sandbox import BoundedSandbox, bounded, watched

__all__ = ["IDEFICS2_TEMPLATE", "find_template", "render", "render_unfinished"]

MAX_SOURCE = 2**18
"""Characters of a template; the longest known have a tenth of it."""

_CUT = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands after a text that is to be continued; the space tells whether a template keeps spaces."""

IDEFICS2_TEMPLATE = (
    "{% for message in messages %}"
    "{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}"
    "{% endif %}"
    "{% endfor %}"
    "<end_of_utterance>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The published template of Idefics2, for instruct checkpoints that carry none."""


def render(
    template: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, **variables: Any
) -> str:
    """The prompt that a template makes of messages.

    Args:
        template: jinja source.
        messages: plain data, as `normalise` returns it.
        add_generation_prompt: end with the beginning of the model's answer.
        variables: anything else the template may use, such as `bos_token`.

    Raises:
        TemplateError: the template is not valid, reaches out of the sandbox or refuses the messages.
    """
    if len(template) > MAX_SOURCE:
        raise TemplateError(f"the chat template has {len(template)} characters, over the limit of {MAX_SOURCE}")
    try:
        with bounded():
            compiled = _compiled(template)
            return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
    except SecurityError as error:
        raise TemplateError(f"the chat template does what its sandbox forbids: {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is not valid jinja (line {error.lineno}): {error.message}") from None
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template refuses these messages: {_brief(error)}") from None
    except MemoryError:
        raise
    except Exception as error:  # a template is code, and whatever it raises is its own fault
        raise TemplateError(f"the chat template cannot render these messages: {_brief(error)}") from None


def render_unfinished(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """As `render`, but the prompt ends with the last text of the last message, for the model to go on.

    As in the reference, spaces at that end remain if the template keeps them.

    Raises:
        TemplateError: as `render`; or the last message has no text, or the template drops or changes it.
    """
    *before, last = messages
    parts = list(last["content"])
    texts = [index for index, part in enumerate(parts) if part["type"] == "text"]
    if not texts:
        raise TemplateError("continue_final_message: the last message has no text to continue")
    text = parts[texts[-1]]["text"]
    parts[texts[-1]] = {**parts[texts[-1]], "text": text + _CUT}
    made = render(template, [*before, {**last, "content": parts}], **variables)
    end = made.rfind(_CUT.strip())
    if end < 0 or text.strip() not in made:
        raise TemplateError("continue_final_message: the chat template drops or changes the last message's text")
    return made[:end] if made.startswith(_CUT, end) else made[:end].rstrip()


def find_template(folder: Path) -> str | None:
    """The chat template of a checkpoint folder, wherever its era put it; None if it has none.

    Looked for in `chat_template.jinja`, `chat_template.json`, `processor_config.json`, `tokenizer_config.json`, in that order.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return read_whole(path).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        found = read_json(path).get("chat_template") if path.is_file() else None
        if found is not None:
            return _default(found, path)
    return None


def _default(found: Any, path: Path) -> str:
    """A file holds one template, or several by name; then `default` is ours."""
    given = found
    if isinstance(found, list) and all(isinstance(entry, Mapping) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if isinstance(found, Mapping):
        found = found.get("default")
    if not isinstance(found, str):
        raise ConfigError(
            f"{path} has a chat_template that is neither a text nor a set of texts with a 'default': {brief(given)}"
        )
    return found


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the model's own words for training masks; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 - jinja reads it as it is

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    environment = BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = watched("tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _brief(error: Exception) -> str:
    """What a template, or jinja, says of itself, however much it is."""
    text = str(error) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]}..."


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > 100 or re.search(r"\d{3}", form):  # a number is a width
        raise SecurityError("it formats the time at length")
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes HTML; a prompt is not HTML."""
    dumps: Callable[..., str] = json.dumps
    return dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
