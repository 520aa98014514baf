from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from idefics.errors import ConfigError, TemplateError
from idefics.processor.messages import normalise
from idefics.processor.template import IDEFICS2_TEMPLATE, find_template, render

CHAT, _ = normalise([{"role": "user", "content": [{"type": "image"}, "Hi <&>"]}, {"role": "assistant", "content": "Yes"}])


def test_the_published_template() -> None:
    text = "User:<image>Hi <&><end_of_utterance>\nAssistant: Yes<end_of_utterance>\n"
    assert render(IDEFICS2_TEMPLATE, CHAT) == text
    assert render(IDEFICS2_TEMPLATE, CHAT, add_generation_prompt=True) == text + "Assistant:"


def test_what_templates_may_use() -> None:
    assert render("{{ messages[0]['content'] | tojson }}", CHAT) == '[{"type": "image"}, {"type": "text", "text": "Hi <&>"}]'
    assert render("{{ {'a': 'é'} | tojson(ensure_ascii=True, indent=1) }}", CHAT) == '{\n "a": "\\u00e9"\n}'
    assert len(render("{{ strftime_now('%Y') }}", CHAT)) == 4
    assert (
        render("{% for m in messages %}{% generation %}{{ m.role }};{% endgeneration %}{% break %}{% endfor %}", CHAT)
        == "user;"
    )
    assert render("{{ bos_token }}{{ nothing }}", CHAT, bos_token="<s>") == "<s>"
    assert render("  {% if true %}\n  x\n  {% endif %}\n", CHAT) == "  x\n"
    counted = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    assert render(counted, CHAT) == "2"
    assert render("{{ raise_exception.__globals__ }}", CHAT) == ""


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"), ("{% for %}", "not valid jinja"),
        ("{{ nothing.more }}", "refuses"), ("{{ messages[0]['role'] + 3 }}", "cannot render"),
        ("{{ messages.__class__.__mro__ }}", "sandbox"), ("{{ messages.append(3) }}", "sandbox"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "sandbox"), ("{{ range.__globals__['os'].popen('id') }}", "sandbox"),
        ("{{ cycler.__init__.x }}", "sandbox"), ("{% include 'x' %}", "refuses|cannot"), ("{{ 1 / 0 }}", "cannot render"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "cannot render"),
    ],
)  # fmt: skip
def test_what_templates_may_not_do(template: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        render(template, CHAT)


def test_where_templates_are_found(tmp_path: Path) -> None:
    def write(name: str, content: Any) -> None:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    assert find_template(tmp_path) is None
    write("tokenizer_config.json", {"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "1"}]})
    assert find_template(tmp_path) == "1"
    write("processor_config.json", {"chat_template": {"default": "2"}})
    assert find_template(tmp_path) == "2"
    write("chat_template.json", {"chat_template": "3"})
    assert find_template(tmp_path) == "3"
    write("chat_template.jinja", "4")
    assert find_template(tmp_path) == "4"
    (tmp_path / "chat_template.jinja").unlink()
    write("chat_template.json", {"chat_template": {"tool": "x"}})
    with pytest.raises(ConfigError, match="default"):
        find_template(tmp_path)
