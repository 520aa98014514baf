"""Makes `idefics1.json`: what the IDEFICS processor of transformers 4.40.2 gives for a set of prompts and images.

Run it in `tests/` with an interpreter that has transformers 4.40.2, torch, sentencepiece and Pillow (not this project's
own):

    python -m golden.make_idefics1_golden TOKENIZER_MODEL golden/idefics1.json

TOKENIZER_MODEL as for `make_processor_golden.py`. Images are drawn, nothing is fetched. The file records the versions,
the prompts in and ids, masks and pixels out. `test_idefics1_golden.py` reads it and imports the cases from here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from golden.make_processor_golden import END, FAKE, IMAGE, picture, published_tokenizer, short, summary

SIDE = 28
"""Of images in prompts, to keep the run short; `PICTURES` are also made at 224."""

Prompt = list[str | tuple[int, int]]
# A pair is the picture of that size. The first two are the model card's.
PROMPTS: dict[str, list[Prompt]] = {
    "base card": [[(61, 47), "In this picture from Asterix and Obelix, we can see"]],
    "instruct card": [
        [
            "User: What is in this image?", (61, 47), "<end_of_utterance>",
            "\nAssistant: This picture depicts Idefix, the dog of Obelix in Asterix and Obelix. Idefix is running on the "
            "ground.<end_of_utterance>",
            "\nUser:", (30, 90), "And who is that?<end_of_utterance>", "\nAssistant:",
        ],
    ],
    "text first": [["User:", (20, 20), "Describe this image.\nAssistant:"]],
    "neighbours": [["Compare", (9, 9), (40, 20), "and", (20, 40), (7, 5), (5, 7)]],
    "blank between": [[(9, 9), " ", (9, 9), "", "x"]],
    "no image": [["Once upon a time"], ["a"]],
    "texts in a row": [["  one ", "two  ", " three", (9, 9), " four ", "five\n"]],
    "documents": [["A cat.", (9, 9), "It sleeps.</s>", "No image here.</s>", "A dog", (8, 8), "</s>", (7, 7), "fin"]],
    "end before image": [["</s>", "words", (9, 9), "more</s>"]],
    "mixed counts": [["one", (9, 9)], [(8, 8), "two", (7, 7), "and", (6, 6)], ["none at all, but longer than the others"]],
    "fake token written": [["a<fake_token_around_image>", (9, 9), "b"]],
    "not quite a URL": [["See https://example.org/a.png there", "//x/y", "mailto:someone", "C:/pictures", (9, 9)]],
    "odd text": [["\t tabs ", "naïve 😀", "", (9, 9), "\n"]],
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "marks": {"add_end_of_utterance_token": True},
    "no marks": {"add_end_of_utterance_token": False},
    "eos": {"add_eos_token": True},
    "longest": {"padding": True, "add_eos_token": True, "add_end_of_utterance_token": False},
    "max_length": {"padding": "max_length", "max_length": 80},
    "cut": {"truncation": True, "max_length": 9},
}
PICTURES = [
    (300, 200, "RGB"), (224, 224, "RGB"), (223, 225, "RGB"), (5, 7, "RGB"), (97, 500, "RGB"), (1001, 33, "RGB"),
    (160, 120, "L"), (133, 122, "RGBA"), (123, 131, "LA"), (120, 90, "P"), (90, 120, "CMYK"), (100, 150, "1"),
    (50, 50, "HSV"), (51, 50, "YCbCr"), (60, 70, "PA"),
]  # fmt: skip
# The reference clips these to 8 bits, where ours scales them (see processor/modes.py): kept to show that it does.
WIDE = ["I;16", "I", "F"]


def drawn(prompts: list[Prompt]) -> list[list[Any]]:
    return [[item if isinstance(item, str) else picture(*item) for item in prompt] for prompt in prompts]


def coloured(width: int, height: int, mode: str) -> Image.Image:
    """As `picture`, in modes that it does not know too."""
    if mode == "PA":
        return picture(width, height, "RGBA").convert("P").convert("PA")
    return picture(width, height, mode)


def wide(mode: str) -> Image.Image:
    """Grey levels of 16 bits, from black to white."""
    levels = np.linspace(0, 65535, 40 * 30).reshape(30, 40)
    if mode == "I;16":
        return Image.fromarray(levels.astype(np.uint16))
    return Image.fromarray(levels.astype(np.int32 if mode == "I" else np.float32))


def main(tokenizer_model: str, out: str) -> None:
    import PIL
    import tokenizers
    import torch
    import transformers
    from transformers import IdeficsImageProcessor, IdeficsProcessor

    def images(side: int) -> Any:
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        return IdeficsImageProcessor(image_size=side, image_mean=mean, image_std=std)

    golden: dict[str, Any] = {
        "versions": {
            "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
            "pillow": PIL.__version__, "numpy": np.__version__, "torch": torch.__version__,
        },
        "prompts": [], "pixels": [], "wide": [],
    }  # fmt: skip
    for base in (False, True):
        tokenizer, _ = published_tokenizer(tokenizer_model, (FAKE, IMAGE) if base else (FAKE, IMAGE, END))
        processor = IdeficsProcessor(images(SIDE), tokenizer)
        for name, prompts in PROMPTS.items():
            for options_name, options in OPTIONS.items():
                if base and (options_name != "default" or END in str(prompts)):
                    continue  # it would spell <end_of_utterance> in letters
                for side in ("left", "right") if len(prompts) > 1 else ("left",):
                    tokenizer.padding_side = side
                    found = processor(drawn(prompts), **options)
                    mask = found["image_attention_mask"]
                    case = {"prompts": name, "options": options_name, "padding_side": side, "base": base}
                    case["input_ids"] = [short(row) for row in found["input_ids"].tolist()]
                    case["attention_mask"] = [short(row) for row in found["attention_mask"].tolist()]
                    case["image_attention_mask"] = [short(row) for row in mask.flatten(1).long().tolist()]
                    case["mask"] = [list(mask.shape), str(mask.dtype)]
                    case["pixels"] = [[summary(p.numpy())["sha256"] for p in row] for row in found["pixel_values"]]
                    golden["prompts"].append(case)
    for case in PICTURES:
        for side in (SIDE, 224):
            pixels = images(side)([coloured(*case)])
            golden["pixels"].append({"picture": list(case), "side": side, **summary(pixels[0].numpy())})
    for mode in WIDE:
        white = (1 - 0.48145466) / 0.26862954
        pixels = images(SIDE)([wide(mode)])[0, 0]
        golden["wide"].append([mode, float((pixels - white).abs().lt(1e-4).float().mean())])
    Path(out).write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")).replace('},{"', '},\n{"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
