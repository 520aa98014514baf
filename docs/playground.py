"""Makes the picture of the playground in these docs: `python docs/playground.py`, with Chromium on this machine."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import idefics  # noqa: E402
from browser.chromium import MISSING, chromium, command  # noqa: E402
from idefics.assets import DEMO  # noqa: E402
from idefics.engine.engine import Engine  # noqa: E402
from idefics.server.app import create_app  # noqa: E402
from idefics.server.link.engine_thread import EngineThread  # noqa: E402
from idefics.server.model import ServedModel  # noqa: E402
from serving import serving  # noqa: E402

ASKED = ((("things.png",), "Describe the image."), ((), "How many objects are there?"))
PICTURE = Path(__file__).with_suffix(".png")


def main() -> None:
    """Asks as a user would, and takes the picture with a third message begun."""
    executable = command()
    if executable is None:
        sys.exit(MISSING)
    model = idefics.load()
    engine = EngineThread(Engine(model.model), model.processor.tokenizer)
    app = create_app(ServedModel.of(model), engine)
    with serving(app) as address, chromium(executable) as browser, browser.tab(width=1100, height=900) as tab:
        tab.open(f"{address}/playground")
        for names, question in ASKED:
            tab.drop(*(DEMO / name for name in names))
            tab.until(f"document.querySelectorAll('#pictures strong').length === {len(names)}")
            tab.type(question)
            tab.press("Enter")
            tab.until("document.querySelector('#status').textContent === 'Answered'")
        tab.drop(DEMO / "thing.png")
        tab.until("document.querySelector('#pictures strong')")
        tab.click("#text")
        tab.type("What color is it?")
        taken = base64.b64decode(tab.call("Page.captureScreenshot", format="png")["data"])
    Image.open(io.BytesIO(taken)).quantize(128).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
