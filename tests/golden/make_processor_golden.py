"""Makes `processor.json`: what the Idefics2 processor of transformers 4.40.2 gives for a set of prompts and images.

Run it with an interpreter that has transformers 4.40.2, torch, sentencepiece and Pillow (not this project's own):

    python tests/golden/make_processor_golden.py TOKENIZER_MODEL tests/golden/processor.json

TOKENIZER_MODEL is `mistral_common/data/tokenizer.model.v1`, the SentencePiece model of Mistral-7B-v0.1; transformers
4.40 converts it by itself, so nothing of ours takes part. The file records the versions, the prompts in and the prompt
text, ids and pixel digests out. `test_processor_golden.py` reads it and imports the pictures and cases from here.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FAKE, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
SIZES = {
    "default": None,
    "448": {"longest_edge": 448, "shortest_edge": 378},
    "small": {"longest_edge": 60, "shortest_edge": 28},
}

# Prompts of one text each; `<image>` is expanded, the number of images follows from it.
TEXTS = [
    "<image>In this image, we can see",
    "In which city is that bridge located?<image>",
    "<image><image>Two of them.",
    "<image> <image>Two apart.",
    "<image>\n<image>\nTwo lines.",
    "a<image>b<image>c",
    "<image> leading space",
    "<image>  two spaces",
    "<image>\tTab",
    "<image>,comma",
    "<image>\n",
    "<image>",
    " <image>",
    "\n<image>x",
    "",
    " ",
    "  ",
    "\n",
    "\n\n  x  \n",
    "Hello",
    " Hello",
    "Hello ",
    "Hello  world   !",
    "<s>Hello</s>",
    "x<end_of_utterance>\ny",
    "x <end_of_utterance> y",
    "<end_of_utterance><end_of_utterance>",
    "<fake_token_around_image>In",
    "<fake_token_around_image><fake_token_around_image>",
    "<unk> <s> ▁ x",
    "<image >not a token< image>",
    "<0x0A> spelled out",
    "naïve café – “quotes” … ½ ﬁ",
    "İstanbul ĳ ﬀ ﷺ",
    "日本語のテキスト、中文，한국어",
    "Приве́т мир \u202bעברית\u202c عربي",
    "😀 emoji 👩‍👩‍👧‍👦 family 🏳️‍🌈 🇫🇷",
    "<image>😀",
    "\u00a0nbsp\u2003em\u200bzero",
    "control \x00\x01\x7f bytes",
    "\ufffd \U000e0001 \U0001faf8 rare",
    "tabs\tand\r\nCRLF",
    "1234567890 3.14 -1e10",
    "def f(x):\n    return x ** 2  # code\n",
    "User:<image>Describe this image.<end_of_utterance>\nAssistant:",
    "User: Hi<end_of_utterance>\nAssistant: Hello.<end_of_utterance>\nUser:<image>And this?<end_of_utterance>\nAssistant:",
]


def part(text: str | None = None) -> dict[str, str]:
    return {"type": "image"} if text is None else {"type": "text", "text": text}


CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": [part(), part("What do we see in this image?")]}],
    [
        {"role": "user", "content": [part(), part("What do we see in this image?")]},
        {"role": "assistant", "content": [part("In this image, we can see the city of New York.")]},
        {"role": "user", "content": [part(), part("And how about this image?")]},
    ],
    [{"role": "system", "content": [part("Be brief.")]}, {"role": "user", "content": [part("Hi")]}],
    [{"role": "user", "content": [part("Compare "), part(), part(" with "), part(), part(".")]}],
    [{"role": "user", "content": [part(), part(), part("\nTwo? 😀")]}],
    [{"role": "user", "content": [part("")]}],
]
# (width, height, mode): odd sizes on both sides of every limit
PICTURES = [
    (300, 200, "RGB"), (378, 378, "RGB"), (379, 977, "RGB"), (980, 980, "RGB"), (981, 400, "RGB"), (1333, 999, "RGB"),
    (500, 1501, "RGB"), (2000, 97, "RGB"), (41, 1203, "RGB"), (5, 7, "RGB"), (640, 480, "L"), (333, 222, "RGBA"),
    (223, 331, "LA"), (320, 240, "P"), (240, 320, "CMYK"), (200, 300, "1"),
]  # fmt: skip


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture made by arithmetic alone: smooth, with edges and noise, the same on every machine and release."""
    y, x, c = np.ogrid[:height, :width, :4]
    noise = (x * 7919 + y * 104729 + c * 1299709) % 251
    levels = ((x * 255 // max(width - 1, 1)) * (c + 1) + (y * 255 // max(height - 1, 1)) * (3 - c) + noise) % 256
    rgba = Image.fromarray(levels.astype(np.uint8))
    if mode == "RGBA":
        return rgba
    if mode == "P":
        return rgba.convert("RGB").quantize(16, dither=Image.Dither.NONE)
    return rgba.convert("LA") if mode == "LA" else rgba.convert("RGB").convert(mode)


def summary(pixels_CHW: np.ndarray) -> dict[str, Any]:
    pixels = np.ascontiguousarray(pixels_CHW, dtype=np.float32)
    _, h, w = pixels.shape
    spots = [pixels[c, (h - 1) * i // 4, (w - 1) * i // 4] for i in range(5) for c in range(3)]
    return {
        "shape": list(pixels.shape),
        "mean": float(pixels.mean(dtype=np.float64)),
        "spots": [round(float(v), 7) for v in spots],
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
    }


def published_tokenizer(tokenizer_model: str, added: tuple[str, ...]) -> tuple[Any, str]:
    """The reference's tokenizer, loaded in the way of a published checkpoint, and its `tokenizer.json`."""
    from transformers import AddedToken, LlamaTokenizerFast

    tokenizer = LlamaTokenizerFast(vocab_file=tokenizer_model, pad_token="<unk>")
    tokens = [AddedToken(token, normalized=False, special=True) for token in added]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config = Path(folder, "tokenizer_config.json")
        kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "add_prefix_space"}
        config.write_text(json.dumps(kept))
        tokenizer_json = Path(folder, "tokenizer.json").read_text(encoding="utf-8")
        Path(folder, "tokenizer.model").unlink(missing_ok=True)
        return LlamaTokenizerFast.from_pretrained(folder), tokenizer_json


def main(tokenizer_model: str, out: str) -> None:
    import PIL
    import tokenizers
    import transformers
    from transformers import Idefics2ImageProcessor, Idefics2Processor

    sys.path.insert(0, str(Path(__file__).parent.parent))

    tokenizer, tokenizer_json = published_tokenizer(tokenizer_model, (FAKE, IMAGE, END))

    golden: dict[str, Any] = {
        "versions": {
            "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
            "pillow": PIL.__version__, "numpy": np.__version__,
        },
        "tokenizer_json_digest": _digest(tokenizer_json),
        "texts": [], "chats": [], "batch": {}, "pixels": [], "decode": [],
    }  # fmt: skip
    processors = {
        split: Idefics2Processor(Idefics2ImageProcessor(do_image_splitting=split), tokenizer, image_seq_len=seq)
        for split, seq in ((False, 64), (True, 64))
    }
    for text in TEXTS:
        golden["texts"].append({"text": text, "ids": {str(s): short(_ids(p, text)) for s, p in processors.items()}})
    for chat in CHATS:
        row: dict[str, Any] = {"messages": chat}
        for generate in (False, True):
            text = processors[False].apply_chat_template(chat, add_generation_prompt=generate)
            row[str(generate)] = {"text": text, "ids": short(_ids(processors[True], text))}
        golden["chats"].append(row)
    batch = ["<image>a", "no image but a longer text", "<image><image>bb"]
    out_batch = processors[False](text=batch, padding=True)
    golden["batch"] = {
        "text": batch,
        "input_ids": [short(row) for row in out_batch["input_ids"]],
        "attention_mask": [short(row) for row in out_batch["attention_mask"]],
    }
    for width, height, mode in PICTURES:
        for name, size in SIZES.items():
            for split in (False, True):
                given = {} if size is None else {"size": size}
                image_processor = Idefics2ImageProcessor(do_image_splitting=split, do_pad=False, **given)
                for route in ("processor", "image_processor"):
                    image = picture(width, height, mode)
                    if route == "processor":
                        image = transformers.image_utils.load_image(image)
                    elif mode == "RGB" or name != "default":
                        continue
                    pixels = image_processor([[image]])["pixel_values"][0]
                    whole = (0, len(pixels) - 1)  # the others by digest alone, to keep the file small
                    images = [summary(p) if i in whole else summary(p)["sha256"] for i, p in enumerate(pixels)]
                    case = {"picture": [width, height, mode], "size": name, "split": split, "route": route, "images": images}
                    golden["pixels"].append(case)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        golden["decode"].append([tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)])
    Path(out).write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")).replace('},{"', '},\n{"') + "\n")


def _ids(processor: Any, text: str) -> list[int]:
    return list(processor(text=text)["input_ids"][0])


def short(ids: list[int]) -> list[Any]:
    """Runs of more than 8 equal ids as [id, count]."""
    runs: list[Any] = []
    i = 0
    while i < len(ids):
        n = 1
        while i + n < len(ids) and ids[i + n] == ids[i]:
            n += 1
        runs += [[int(ids[i]), n]] if n > 8 else [int(ids[i])] * n
        i += n
    return runs


def _digest(tokenizer_json: str) -> str:
    from mistral_tokenizer import digest

    return digest(tokenizer_json)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
