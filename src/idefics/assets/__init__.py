"""What ships inside the package beside its code: the embedded model, the pictures of its demo, the playground's page."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["DEMO", "EMBEDDED", "EMBEDDED_NAME", "KNOWLEDGE", "PLAYGROUND", "knowledge"]

_HERE = Path(str(files(__name__)))

EMBEDDED = _HERE / "idefics2-nano"
"""The model that ships inside the package."""
EMBEDDED_NAME = EMBEDDED.name
"""What it is called wherever a folder or a Hub id could stand."""
KNOWLEDGE = (
    "This small model knows flat shapes, colours, counts up to six and printed numbers; it does not understand photographs."
)
"""What the embedded model can be asked about, in a sentence for whoever meets it first (the page, commands, its card)."""
DEMO = _HERE / "demo"
"""Images, and `questions.json`: a list of {"images": [names], "turns": [{"question": ..., "answer": ...}]}."""
PLAYGROUND = _HERE / "playground"
"""The files of the page that a server shows."""


def knowledge(name: str) -> str | None:
    """What the model of a name can be asked about, where we know it: of the embedded one.

    Args:
        name: as the model is called where it was loaded.
    """
    return KNOWLEDGE if name == EMBEDDED_NAME else None
