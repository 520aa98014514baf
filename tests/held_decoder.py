"""Decoding that waits for a file to exist, for tests of who waits meanwhile: `monkeypatch.setattr(decoders, "_made", made)`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from idefics.server.images import decoders

UNTIL = "HELD_UNTIL"


def made() -> Callable[[Any], Any]:
    decode, until = decoders._made(), Path(os.environ[UNTIL])

    def held(task: Any) -> Any:
        (until.parent / task.where).touch()
        while not until.exists():
            time.sleep(0.005)
        return decode(task)

    return held
