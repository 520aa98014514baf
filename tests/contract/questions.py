"""What the clients ask, with images by data URL."""

from __future__ import annotations

import base64
from pathlib import Path

from idefics.assets import DEMO


def demo(name: str) -> Path:
    return DEMO / f"{name}.png"


def url(name: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(demo(name).read_bytes()).decode()}"


def prompt(question: str, *names: str) -> str:
    """A raw prompt, as text-generation-inference's users write it."""
    images = "".join(f"![]({url(name)})" for name in names)
    return f"User:{images or ' '}{question}<end_of_utterance>\nAssistant:"
