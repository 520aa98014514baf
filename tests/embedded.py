"""How the recipe evaluates the embedded model, imported by path, and its answers to fresh drawings."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from idefics.api import Answer, Idefics

ROOT = Path(__file__).parents[1]


@cache
def recipe() -> ModuleType:
    """`recipes/nano_evaluation.py`."""
    spec = importlib.util.spec_from_file_location("nano_evaluation", ROOT / "recipes" / "nano_evaluation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


def messages(images: list[Any], questions: list[str], answers: list[str]) -> list[dict[str, Any]]:
    """A chat that begins with images and ends with a question; one answer fewer than questions."""
    chat: list[dict[str, Any]] = []
    for number, question in enumerate(questions):
        parts = [{"type": "image", "image": image} for image in images] if number == 0 else []
        chat.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        if number < len(answers):
            chat.append({"role": "assistant", "content": [{"type": "text", "text": answers[number]}]})
    return chat


class Recorder:
    """Stands for a loaded model where the recipe asks one, and keeps the details of every answer."""

    def __init__(self, model: Idefics) -> None:
        self.model = model
        self.processor = model.processor
        self.answers: list[Answer] = []

    def generate(self, *arguments: Any, **options: Any) -> list[str]:
        given = self.model.generate(*arguments, **options, details=True)
        self.answers += given
        return [answer.text for answer in given]
