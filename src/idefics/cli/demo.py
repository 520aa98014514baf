"""`idefics demo`: questions about the images that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from idefics.assets import DEMO
from idefics.cli.images import attach
from idefics.cli.loading import memory_explained, open_model
from idefics.cli.options import ImageOptions, ModelOptions
from idefics.cli.terminal import say, write
from idefics.errors import CheckpointNotFound, ConfigError

__all__ = ["demo"]


def demo(
    *,
    model: ModelOptions,
    images: ImageOptions,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless every answer is right.")] = False,
) -> None:
    """Answer questions about the images that ship with the package, and say how many answers are right."""
    talks = _questions()
    opened = open_model(model, images)
    right = asked = 0
    for talk in talks:
        print(" + ".join(talk["images"]) or "(no image)")
        pictures = [attach(str(DEMO / name)).image for name in talk["images"]]
        messages: list[dict[str, Any]] = []
        for turn in talk["turns"]:
            parts = [{"type": "image", "image": picture} for picture in pictures] if not messages else []
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": turn["question"]}]})
            with memory_explained("answering"):
                # Greedy whatever the checkpoint's defaults: the expected answers are what is likeliest.
                answer = opened.chat(messages, do_sample=False, max_new_tokens=64)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            hit = _plain(answer) == _plain(turn["answer"])
            asked, right = asked + 1, right + hit
            verdict = "right" if hit else f"expected: {turn['answer']}"
            write(f"  {turn['question']}\n    {answer.strip()}   [{verdict}]", end="\n")
    print(f"{right} of {asked} answers are right")
    if check and right < asked:
        say(f"error: {asked - right} of {asked} answers are not as expected")
        raise typer.Exit(1)


def _questions() -> list[Mapping[str, Any]]:
    path = DEMO / "questions.json"
    if not path.is_file():
        raise CheckpointNotFound(f"{path} does not exist: this installation lacks the demo's images; install the package again")
    try:
        talks = [
            {
                "images": list(talk["images"]),
                "turns": [{key: str(turn[key]) for key in ("question", "answer")} for turn in talk["turns"]],
            }
            for talk in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a list of images and turns: {error!r}") from None
    return list(talks)


def _plain(answer: str) -> str:
    return " ".join(answer.lower().strip(" .!\n").split())
