"""What idefics2-nano learns from: its tokenizer, and batches of drawings, questions and labels. Run through recipes/nano.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor
from torch.utils.data import Dataset

from idefics.config import Idefics2Config
from idefics.data.collate import padded
from idefics.data.labels import labelled
from idefics.data.sources.drawings import (
    COLORS,
    KINDS,
    PATCH_COLORS,
    PATCH_KINDS,
    Box,
    Crowd,
    Drawing,
    Scene,
    box_of,
    conversation,
    corpus,
    draw_crowd,
    draw_scene,
    invent_scene,
    sample_of,
    small_talk,
)
from idefics.data.sources.drawings.shapes import PLURALS
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.tokenizer import Tokenizer

Labels = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Kinds (indices into `PATCH_KINDS`) and colours (into `PATCH_COLORS`), of one shape."""

PATCH = 14
# Grids of patches, h x w: what 4:3, 16:9, square, portrait and smaller pictures become at 168 pixels.
GRIDS = (
    (9, 12), (9, 12), (8, 12), (7, 12), (6, 12), (12, 9), (12, 8),
    (10, 10), (12, 12), (8, 8), (6, 9), (9, 6), (7, 7), (6, 6),
)  # fmt: skip
CELLS = (4, 8)  # rows x columns of the coarse grid: one cell per latent
SLOTS = 2  # things with a place in one cell


@dataclass(frozen=True)
class NanoStage:
    """One stage: what it looks at, how long, how fast, and what is learned with which weight.

    Attributes:
        crowds: share of batches that are crowds; the others are scenes that can be asked about.
        turns: fewest and most questions in a conversation.
        pairs: share of the conversations' batches in which they are about two images.
        painted: share of batches whose pictures are painted; in the others the decoder sees symbols.
        favor: tasks asked about more often than usual, and how many times as often.
        grows: steps at which groups grow from 3 to 6 things, and numbers get their second, third and fourth digit.
        lr: peak of AdamW's learning rate; Muon's is `MUON` times that.
        decay: last steps, in which the rate falls linearly to zero.
        symbols: weight of the answers when the decoder sees symbols instead of latents.
        tallies: weight of counting along the latents.
        nouns: weight of knowing, at every noun, how many such things each image shows.
        patches: weight of naming what covers each patch.
        routes: weight of where the resampler looks.
        names: weight of a head that names what each latent's cell holds.
        latents: weight of writing each cell's symbol.
        answers: weight of the answers when the decoder sees latents.
    """

    name: str
    crowds: float
    steps: int
    batch: int
    lr: float
    warmup: int
    decay: int
    turns: tuple[int, int] = (2, 4)
    pairs: float = 0.35
    painted: float = 1.0
    favor: tuple[tuple[str, float], ...] = ()
    grows: tuple[int, int, int, int] = (0, 0, 0, 0)
    symbols: float = 0.0
    tallies: float = 0.0
    nouns: float = 0.0
    patches: float = 0.0
    routes: float = 0.0
    names: float = 0.0
    latents: float = 0.0
    answers: float = 0.0


SPECIALS = ("<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>")
UNK, BOS, EOS, FAKE, IMAGE, EOU = range(6)


def build_processor(config: Idefics2Config, *, seed: int) -> Idefics2Processor:
    """What the checkpoint reads and sees with: a tokenizer made for it, Idefics2's chat template, its pictures' sizes."""
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    settings = {**names, "additional_special_tokens": list(SPECIALS[3:]), "padding_side": "left", "model_max_length": 2048}
    tokenizer = Tokenizer(build_tokenizer(config.text_config.vocab_size, seed=seed), settings)
    return Idefics2Processor.for_config(config, tokenizer)


def build_tokenizer(vocab_size: int, *, seed: int) -> Backend:
    """A byte-fallback BPE of the Mistral kind, trained on the drawings' questions and answers; digits stay apart.

    A word tokenises alike with or without a space before it at the start of a segment, so that processors which insert
    one after an image (transformers 5) and those which do not (4.40, this package) agree.
    """
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Backend(models.BPE(unk_token="<unk>"))
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
            pre_tokenizers.Punctuation(behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.pre_tokenizer = split
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(fallback), special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    texts = [*corpus(np.random.default_rng(seed), 20_000), *(["\nAssistant: yes", "\nUser: hello", "User: hello"] * 2000)]
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    learned = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)[len(SPECIALS) :]
    names = [*SPECIALS, *fallback, *learned]
    state["model"].update(vocab={name: i for i, name in enumerate(names)}, byte_fallback=True, fuse_unk=True)
    tokenizer = Backend.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)])
    return tokenizer


@dataclass(frozen=True)
class NanoBatch:
    """What one step learns from. B rows of T tokens; N images of one size, in row order.

    Attributes:
        pixels_NHWC: uint8; None for scenes that are not painted.
        kinds_NP, colors_NP: what covers each patch; empty for scenes that are not painted.
        kinds_NLS, colors_NLS: what is centred in each cell, of up to S = 2 things from left to right.
        ids_BT: right-padded with 0.
        turns_BT: which of `tasks` a token answers; -1 for tokens without loss.
        counts_BTI: at nouns and colours, how many such things each of up to I = 2 images shows; -1 elsewhere.
        tasks: of each turn of the batch.
    """

    pixels_NHWC: Tensor | None
    kinds_NP: Tensor
    colors_NP: Tensor
    kinds_NLS: Tensor
    colors_NLS: Tensor
    ids_BT: Tensor
    turns_BT: Tensor
    counts_BTI: Tensor
    tasks: list[str]


@dataclass(frozen=True)
class Talks:
    """Tokens of conversations, one list per row; which turn each answers (-1: none); what it counts; and each turn's task."""

    ids: list[Sequence[int]]
    turns: list[list[int]]
    counts: list[list[tuple[int, int]]]
    tasks: list[str]


class Nouns:
    """What the words of a text count: `circle`, `red`, `red circle`, `red objects`, `objects`, `number`."""

    def __init__(self, tokenizer: Backend) -> None:
        def last(word: str) -> int:
            return int(tokenizer.encode(word).ids[-1])

        self.kinds = {last(form): kind for kind in KINDS for form in (kind, PLURALS[kind])}
        self.colors = {last(color): color for color in COLORS}
        self.things = {last(word) for word in ("object", "objects", "things", "shapes", "thing", "shape")}
        self.number = last("number")

    def counts(self, ids: Sequence[int], scenes: Sequence[Scene]) -> list[tuple[int, int]]:
        """For each token how many such things the first and the second scene show; -1 for other words and missing scenes."""
        found = []
        for before, token in zip([UNK, *ids], ids, strict=False):
            kind, color = self.kinds.get(token), self.colors.get(token)
            if token == self.number:
                each = [int(scene.number is not None) for scene in scenes]
            elif kind or color or token in self.things:
                color = color or self.colors.get(before)
                each = [
                    sum(kind in (None, thing.kind) and color in (None, thing.color) for thing in scene.things)
                    for scene in scenes
                ]
            else:
                each = []
            found.append((each[0] if each else -1, each[1] if len(each) > 1 else -1))
        return found


class NanoBatches(Dataset[NanoBatch]):
    """Batch `i` of a stage, drawn when asked for."""

    def __init__(self, processor: Idefics2Processor, stage: NanoStage, seed: int) -> None:
        self.processor = processor
        self.stage = stage
        self.seed = seed
        self.nouns = Nouns(processor.tokenizer.backend)

    def __getitem__(self, step: int) -> NanoBatch:
        rng = np.random.default_rng([self.seed, *self.stage.name.encode(), step])
        h, w = GRIDS[rng.integers(len(GRIDS))]
        width, height = w * PATCH, h * PATCH
        if rng.random() < self.stage.crowds:
            crowds = [draw_crowd(rng, width=width, height=height) for _ in range(self.stage.batch)]
            return painted(crowds, Talks([[BOS]], [[-1]], [[(-1, -1)]], []))
        groups, *lengths = self.stage.grows
        things, digits = 6 if step >= groups else 3, 1 + sum(step >= length for length in lengths)
        asked = self.stage.symbols + self.stage.answers > 0
        per_row = 2 if asked and rng.random() < self.stage.pairs else 1
        count = self.stage.batch // per_row * per_row
        if self.stage.painted == 0 or rng.random() >= self.stage.painted:
            scenes = [invent_scene(rng, width=width, height=height, max_digits=digits, max_things=things) for _ in range(count)]
            return unpainted(scenes, self.talks(rng, scenes, per_row))
        drawings = [draw_scene(rng, width=width, height=height, max_digits=digits, max_things=things) for _ in range(count)]
        return painted(drawings, self.talks(rng, [drawing.scene for drawing in drawings], per_row))

    def talks(self, rng: np.random.Generator, scenes: Sequence[Scene], per_row: int) -> Talks:
        """A conversation about every `per_row` scenes, and a few without any."""
        rows = [scenes[first : first + per_row] for first in range(0, len(scenes), per_row)]
        out = Talks([], [], [], [])
        turns_each = int(rng.integers(self.stage.turns[0], self.stage.turns[1] + 1))  # alike, so that little is padded
        talks = [(row, conversation(rng, row, turns=turns_each, favor=dict(self.stage.favor))) for row in rows]
        talks += [((), [small_talk(rng)]) for _ in range(len(rows) // 24)]
        for row, talk in talks:
            last = bool(row) and rng.random() >= 0.85  # images after the text of the first question
            tokens = labelled(sample_of(talk, row, name=self.stage.name, images_last=last), self.processor)
            out.ids.append(tokens.ids)
            out.turns.append([answer if answer < 0 else len(out.tasks) + answer for answer in tokens.answers])
            out.counts.append(self.nouns.counts(tokens.ids, row))
            out.tasks.extend(exchange.task for exchange in talk)
        return out


def painted(pictures: Sequence[Drawing | Crowd], talks: Talks) -> NanoBatch:
    """Pictures of one size with all their labels."""
    patches = [picture.patch_labels(PATCH) for picture in pictures]
    cells = [cell_labels(picture.names, [*map(box_of, picture.outlines)], picture.image.size) for picture in pictures]
    pixels_NHWC = torch.from_numpy(np.stack([np.asarray(picture.image) for picture in pictures]))
    return batch_of(
        cells, talks, pixels_NHWC=pixels_NHWC, patches=[(kinds.ravel(), colors.ravel()) for kinds, colors in patches]
    )


def unpainted(scenes: Sequence[Scene], talks: Talks) -> NanoBatch:
    """Scenes without pictures: labels of cells only."""
    cells = [cell_labels(scene.names, scene.boxes, (scene.width, scene.height)) for scene in scenes]
    nothing = np.zeros(0, dtype=np.int64)
    return batch_of(cells, talks, pixels_NHWC=None, patches=[(nothing, nothing)] * len(scenes))


def batch_of(cells: Sequence[Labels], talks: Talks, *, pixels_NHWC: Tensor | None, patches: Sequence[Labels]) -> NanoBatch:
    """A batch of labels, one pair of kinds and colours per image, and of conversations."""
    kinds_NP, colors_NP, kinds_NLS, colors_NLS = (
        torch.from_numpy(np.stack([labels[which] for labels in pairs])) for pairs in (patches, cells) for which in (0, 1)
    )
    return NanoBatch(
        pixels_NHWC=pixels_NHWC,
        kinds_NP=kinds_NP,
        colors_NP=colors_NP,
        kinds_NLS=kinds_NLS,
        colors_NLS=colors_NLS,
        ids_BT=padded(talks.ids, 0),
        turns_BT=padded(talks.turns, -1),
        counts_BTI=torch.stack([padded([[c[i] for c in row] for row in talks.counts], -1) for i in range(2)], dim=-1),
        tasks=talks.tasks,
    )


def cell_labels(names: Sequence[tuple[str, str]], boxes: Sequence[Box], size: tuple[int, int]) -> Labels:
    """Kind and colour, (L, S) each, of what is centred in each cell of the coarse grid, row by row; 0 where nothing is.

    The first and the second thing from the left have a place in a cell; a third takes the second's.

    Args:
        names: kind (or digit) and colour of each thing.
        boxes: where each is, in pixels.
        size: width and height of the picture in pixels.
    """
    kinds, colors = (np.zeros((CELLS[0] * CELLS[1], SLOTS), dtype=np.int64) for _ in range(2))
    for (kind, color), (left, top, right, bottom) in sorted(zip(names, boxes, strict=True), key=lambda named: named[1][0]):
        row, column = cell_index((top + bottom) / 2 / size[1], CELLS[0]), cell_index((left + right) / 2 / size[0], CELLS[1])
        cell = row * CELLS[1] + column
        slot = int(kinds[cell, 0] > 0)
        kinds[cell, slot], colors[cell, slot] = PATCH_KINDS.index(kind), PATCH_COLORS.index(color)
    return kinds, colors


def cell_index(place: float, cells: int) -> int:
    """Which of `cells` equal parts of a side a place on it, from 0 to 1, lies in."""
    return max(0, min(int(place * cells), cells - 1))
