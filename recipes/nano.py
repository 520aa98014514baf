"""idefics2-nano, from nothing: the small Idefics2 that ships inside the package, trained on pictures it draws itself.

    python recipes/nano.py train --out runs/nano          # tokenizer, three stages, checkpoint in the published layout
    python recipes/nano.py evaluate [--model runs/nano]   # the table of the README, on drawings never trained on
    python recipes/nano.py demo                           # the images of `idefics demo`

Joined from random weights such a model learns colours and little else, so its parts are warmed before they are joined, in
the spirit of the real recipe, which starts from SigLIP and Mistral (arXiv 2405.02246):

1. *patches*: the vision tower alone names the kind and colour of what covers each patch (the drawings know), mostly on
   crowds: pictures so full of things and digits that a patch in two has something to learn from;
2. *latents*: the connector learns to route: latent i of the resampler names what is centred in cell i of a coarse grid, and
   two of its heads are told to look there;
3. *answers*: everything learns to answer, numbers growing from 1 to 4 digits and crowds from 3 to 6 objects; the first two
   tasks stay on with a small weight. Loss on the answers and their `<end_of_utterance>` only.

Matrices are trained with Muon (orthogonalised momentum), everything else with AdamW: after the same time the tower's loss
on patches is 1.5 with Muon and 2.1 without (docs/log.md).

Reproducible: every batch is a function of (seed, stage, step); steps, not minutes, end a stage.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from idefics.api import EMBEDDED
from idefics.config import Idefics2Config, VisionConfig, preset
from idefics.data.drawings import (
    PATCH_COLORS,
    PATCH_KINDS,
    Crowd,
    Drawing,
    Turn,
    conversation,
    corpus,
    draw_crowd,
    draw_scene,
    small_talk,
)
from idefics.model.idefics2 import Idefics2
from idefics.model.perceiver import PerceiverResampler
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.image import ImageProcessor
from idefics.processor.tokenizer import Tokenizer as ProcessorTokenizer
from idefics.weights.init import initialize
from idefics.weights.save import save_model
from nano_evaluation import DEMO_SEED, LONGEST, SHORTEST, demo, evaluate

PATCH = 14
# Grids of patches, h x w: what 4:3, 16:9, square, portrait and smaller pictures become at 168 pixels.
GRIDS = (
    (9, 12), (9, 12), (8, 12), (7, 12), (6, 12), (12, 9), (12, 8),
    (10, 10), (12, 12), (8, 8), (6, 9), (9, 6), (7, 7), (6, 6),
)  # fmt: skip
CELLS = (4, 8)  # rows x columns of the coarse grid: one cell per latent
TRAIN_SEED = 20_240_415


@dataclass(frozen=True)
class Stage:
    """One stage: what it looks at, how long, how fast, and what is learned with which weight.

    Attributes:
        crowds: share of batches that are crowds; the others are scenes that can be asked about.
        lr: peak of AdamW's learning rate; Muon's is `MUON` times that.
        decay: last steps, in which the rate falls linearly to zero.
    """

    name: str
    crowds: float
    steps: int
    batch: int
    lr: float
    warmup: int
    decay: int
    patches: float = 0.0
    routes: float = 0.0
    latents: float = 0.0
    answers: float = 0.0


STAGES = (
    Stage("patches", crowds=0.75, steps=1250, batch=48, lr=1.5e-3, warmup=60, decay=300, patches=1.0),
    Stage("latents", crowds=0.6, steps=500, batch=48, lr=1.2e-3, warmup=40, decay=100, patches=0.3, routes=0.5, latents=1.0),
    Stage(
        "answers", crowds=0.0, steps=1500, batch=48, lr=0.8e-3, warmup=60, decay=550,
        patches=0.1, routes=0.05, latents=0.2, answers=1.0,
    ),
)  # fmt: skip
MUON = 14.0


# ---------------------------------------------------------------------------------------------------------- tokenizer

SPECIALS = ("<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>")
UNK, BOS, EOS, FAKE, IMAGE, EOU = range(6)


def build_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-fallback BPE of the Mistral kind, trained on the drawings' questions and answers; digits stay apart.

    A word tokenises alike with or without a space before it at the start of a segment, so that processors which insert
    one after an image (transformers 5) and those which do not (4.40, this package) agree.
    """
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
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
    texts = [*corpus(np.random.default_rng(TRAIN_SEED), 20_000), *(["\nAssistant: yes", "\nUser: hello", "User: hello"] * 2000)]
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    learned = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)[len(SPECIALS) :]
    names = [*SPECIALS, *fallback, *learned]
    state["model"].update(vocab={name: i for i, name in enumerate(names)}, byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)])
    return tokenizer


# --------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Batch:
    """What one step learns from. B rows of T tokens; N images of one size, in row order.

    Attributes:
        pixels_NHWC: uint8.
        kinds_NP, colors_NP: what covers each patch.
        kinds_NL, colors_NL: what is centred in each cell.
        ids_BT: right-padded with 0.
        turns_BT: which of `tasks` a token answers; -1 for tokens without loss.
        tasks: of each turn of the batch.
    """

    pixels_NHWC: Tensor
    kinds_NP: Tensor
    colors_NP: Tensor
    kinds_NL: Tensor
    colors_NL: Tensor
    ids_BT: Tensor
    turns_BT: Tensor
    tasks: list[str]


class Drawings(Dataset[Batch]):
    """Batch `i` of a stage, drawn when asked for."""

    def __init__(self, tokenizer: str, stage: Stage, seed: int) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.stage = stage
        self.seed = seed
        self.encode = lru_cache(maxsize=20_000)(lambda text: self.tokenizer.encode(text, add_special_tokens=False).ids)

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, *self.stage.name.encode(), step])
        h, w = GRIDS[rng.integers(len(GRIDS))]
        if rng.random() < self.stage.crowds:
            crowds = [draw_crowd(rng, width=w * PATCH, height=h * PATCH) for _ in range(self.stage.batch)]
            return labelled(crowds, [[BOS]], [[-1]], [])
        grown = step / self.stage.steps if self.stage.answers else 1.0
        digits = 1 + (grown > 0.06) + (grown > 0.12) + (grown > 0.2)
        things = 3 if grown < 0.05 else 6
        per_row = 2 if self.stage.answers and rng.random() < 0.35 else 1
        rows = [
            [draw_scene(rng, width=w * PATCH, height=h * PATCH, max_digits=digits, max_things=things) for _ in range(per_row)]
            for _ in range(self.stage.batch // per_row)
        ]
        ids, turns, tasks = self.dialogues(rng, rows) if self.stage.answers else ([[BOS]], [[-1]], [])
        return labelled([drawing for row in rows for drawing in row], ids, turns, tasks)

    def dialogues(
        self, rng: np.random.Generator, rows: Sequence[Sequence[Drawing]]
    ) -> tuple[list[list[int]], list[list[int]], list[str]]:
        """Tokens of a conversation about each row's drawings, and a few without any."""
        ids: list[list[int]] = []
        turns: list[list[int]] = []
        tasks: list[str] = []
        turns_each = int(rng.integers(2, 5))  # alike within a batch, so that little is padded
        talks = [(len(row), conversation(rng, row, turns=turns_each)) for row in rows]
        talks += [(0, [small_talk(rng)]) for _ in range(len(rows) // 24)]
        for images, talk in talks:
            row_ids, row_turns = [BOS], [-1]
            for position, turn in enumerate(talk):
                prompt = self.prompt(rng, turn, images if position == 0 else 0, first=position == 0)
                answer = [*self.encode(turn.answer), EOU]
                row_ids += prompt + answer
                row_turns += [-1] * len(prompt) + [len(tasks)] * len(answer)
                tasks.append(turn.task)
            ids.append(row_ids)
            turns.append(row_turns)
        return ids, turns, tasks

    def prompt(self, rng: np.random.Generator, turn: Turn, images: int, *, first: bool) -> list[int]:
        """A user's turn as the chat template writes it, up to and with `Assistant:`; images before or after the text."""
        block = [FAKE, *([IMAGE] * (CELLS[0] * CELLS[1]))]
        pictures = block * images + [FAKE] * (images > 0)
        user = "User:" if first else "\nUser:"
        if images and rng.random() < 0.85:
            opening = [*self.encode(user), *pictures, *self.encode(turn.question)]
        else:
            opening = [*self.encode(f"{user} {turn.question}"), *pictures]
        return [*opening, EOU, *self.encode("\nAssistant:")]


def labelled(
    pictures: Sequence[Drawing | Crowd], ids: Sequence[Sequence[int]], turns: Sequence[Sequence[int]], tasks: list[str]
) -> Batch:
    """Pictures of one size with all their labels."""
    patches = [picture.patch_labels(PATCH) for picture in pictures]
    cells = [cell_labels(picture) for picture in pictures]
    return Batch(
        pixels_NHWC=torch.from_numpy(np.stack([np.asarray(picture.image) for picture in pictures])),
        kinds_NP=torch.from_numpy(np.stack([kinds for kinds, _ in patches])).flatten(1),
        colors_NP=torch.from_numpy(np.stack([colors for _, colors in patches])).flatten(1),
        kinds_NL=torch.from_numpy(np.stack([kinds for kinds, _ in cells])),
        colors_NL=torch.from_numpy(np.stack([colors for _, colors in cells])),
        ids_BT=padded(ids, 0),
        turns_BT=padded(turns, -1),
        tasks=tasks,
    )


def cell_labels(picture: Drawing | Crowd) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Kind and colour of what is centred in each cell of the coarse grid, row by row; 0 where nothing is."""
    kinds, colors = np.zeros(CELLS, dtype=np.int64), np.zeros(CELLS, dtype=np.int64)
    size = np.array([picture.image.height, picture.image.width])
    for (kind, color), points in zip(picture.names, picture.outlines, strict=True):
        middle = (points.min(axis=0) + points.max(axis=0))[::-1] / 2
        row, column = np.clip(middle / size * CELLS, 0, np.array(CELLS) - 1).astype(int)
        kinds[row, column], colors[row, column] = PATCH_KINDS.index(kind), PATCH_COLORS.index(color)
    return kinds.ravel(), colors.ravel()


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of unequal length as one tensor (B, T), filled at the right."""
    out = torch.full((len(rows), max(map(len, rows))), fill)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return out


# ----------------------------------------------------------------------------------------------------------- learning


class Learner(nn.Module):
    """The model, and the heads that warm its parts and are thrown away."""

    def __init__(self, config: Idefics2Config) -> None:
        super().__init__()
        self.model = Idefics2(config, backend="reference")  # faster than SDPA in bf16 on CPUs without AMX
        labels = len(PATCH_KINDS) + len(PATCH_COLORS)
        self.patch_head = nn.Linear(config.vision_config.hidden_size, labels)
        self.cell_head = nn.Linear(config.text_config.hidden_size, labels)

    def forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, dict[str, float], Tensor | None]:
        """The stage's loss, its parts, and which answer tokens were right (a bool per token of `turns_BT >= 0`)."""
        images, height, width, _ = batch.pixels_NHWC.shape
        h, w = height // PATCH, width // PATCH
        pixels = batch.pixels_NHWC.float().div(127.5).sub(1.0).permute(0, 3, 1, 2)
        patches = pixels.reshape(images, 3, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(images * h * w, -1)
        features_PD = self.model.vision_model(patches, [(h, w)] * images)
        parts = {"patches": label_loss(self.patch_head(features_PD), batch.kinds_NP, batch.colors_NP)}
        right = None
        if stage.latents:
            context_PD = self.model.connector.modality_projection(features_PD)
            latents_NLD = self.model.connector.perceiver_resampler(context_PD, [h * w] * images)
            parts["latents"] = label_loss(self.cell_head(latents_NLD).flatten(0, 1), batch.kinds_NL, batch.colors_NL)
            if stage.routes:
                parts["routes"] = route_loss(
                    self.model.connector.perceiver_resampler, context_PD.unflatten(0, (images, -1)), h, w
                )
        if stage.answers:
            positions_BT = torch.arange(batch.ids_BT.shape[1]).expand_as(batch.ids_BT)
            hidden_BTD = self.model(batch.ids_BT, positions_BT=positions_BT, latents_NLD=latents_NLD)
            answered = batch.turns_BT[:, 1:] >= 0
            logits = self.model.logits(hidden_BTD[:, :-1][answered]).float()
            targets = batch.ids_BT[:, 1:][answered]
            parts["answers"] = F.cross_entropy(logits, targets)
            right = logits.argmax(-1) == targets
        loss = sum((getattr(stage, name) * part for name, part in parts.items()), start=torch.zeros(()))
        return loss, {name: part.item() for name, part in parts.items()}, right


def label_loss(logits: Tensor, kinds: Tensor, colors: Tensor) -> Tensor:
    """Cross-entropy of kinds and colours; what is empty weighs as much, all together, as what is not."""
    logits = logits.float()
    kind_logits, color_logits = logits[:, : len(PATCH_KINDS)], logits[:, len(PATCH_KINDS) :]
    full = kinds.flatten() > 0
    weights = torch.where(full, 0.5 / full.sum().clamp(min=1), 0.5 / (~full).sum().clamp(min=1))
    each = F.cross_entropy(kind_logits, kinds.flatten(), reduction="none")
    each = each + F.cross_entropy(color_logits, colors.flatten(), reduction="none")
    return (each * weights).sum()


def route_loss(resampler: PerceiverResampler, context_NPD: Tensor, h: int, w: int) -> Tensor:
    """Cross-entropy between where the first key-value group's heads look, in the first layer, and each latent's cell."""
    layer: Any = resampler.layers[0]
    head: int = layer.self_attn.head_dim
    q_LHK = layer.self_attn.q_proj(layer.input_latents_norm(resampler.latents)).view(len(resampler.latents), -1, head)
    k_NPGK = layer.self_attn.k_proj(layer.input_context_norm(context_NPD)).view(*context_NPD.shape[:2], -1, head)
    routed = q_LHK.shape[1] // k_NPGK.shape[2]
    scores_NHLP = torch.einsum("lhk,npk->nhlp", q_LHK[:, :routed].float(), k_NPGK[:, :, 0].float()) * head**-0.5
    loss: Tensor = -(near_cells(h, w) * scores_NHLP.log_softmax(-1)).sum(-1).mean()
    return loss


@lru_cache
def near_cells(h: int, w: int) -> Tensor:
    """(L, P): for each cell a distribution over the patches of an h x w grid, around the cell's middle."""
    weights = []
    for n, cells in zip((h, w), CELLS, strict=True):
        patch, cell = ((torch.arange(count) + 0.5) / count for count in (n, cells))
        weights.append((-0.5 * ((cell[:, None] - patch[None]) * cells / 0.5) ** 2).exp())
    both = torch.einsum("rh,cw->rchw", *weights).reshape(CELLS[0] * CELLS[1], h * w)
    return both / both.sum(-1, keepdim=True)


def waves(config: VisionConfig) -> Tensor:
    """Where the position table begins: sines and cosines of row and column, so that near places look alike."""
    angles = torch.arange(config.patches_per_side)[:, None] / config.patches_per_side * math.pi
    angles = angles * 1.6 ** torch.arange(config.hidden_size // 4)
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)
    side = config.patches_per_side
    both = torch.cat((axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)), dim=-1)
    return 0.3 * both.reshape(side * side, -1)


def optimizers_of(learner: Learner) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices inside the model, AdamW for tables, heads, norms and biases."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in learner.named_parameters():
        inside = ".layers." in name or "modality_projection" in name
        (matrices if parameter.ndim == 2 and inside else rest).append(parameter)
    return (
        torch.optim.Muon(matrices, lr=0.0, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    )


def scheduled(stage: Stage, step: int) -> float:
    """Learning rate: linear warm-up, flat, linear decay."""
    return stage.lr * min(1.0, (step + 1) / stage.warmup, (stage.steps - step) / stage.decay)


def turn_accuracy(batch: Batch, right: Tensor) -> Iterator[tuple[str, bool]]:
    """Task of each turn, and whether every token of its answer was right: what greedy decoding would answer."""
    turns = batch.turns_BT[:, 1:][batch.turns_BT[:, 1:] >= 0]
    wrong = torch.zeros(len(batch.tasks), dtype=torch.long).index_add_(0, turns, (~right).long())
    return zip(batch.tasks, (wrong == 0).tolist(), strict=True)


def train(out: Path, *, seed: int) -> None:
    """Runs all stages, or goes on where an interrupted run stopped; writes the checkpoint into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = preset("idefics2-nano")
    tokenizer = build_tokenizer(config.text_config.vocab_size)
    tokenizer.save(str(out / "tokenizer.json"))
    learner = Learner(config)
    initialize(learner, seed=seed)
    with torch.no_grad():
        learner.model.vision_model.embeddings.position_embedding.weight.copy_(waves(config.vision_config))
    optimizers = optimizers_of(learner)
    done_stage, done_step = 0, 0
    resume = out / "resume.pt"
    if resume.exists():
        saved = torch.load(resume, weights_only=True)
        learner.load_state_dict(saved["learner"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        done_stage, done_step = saved["stage"], saved["step"]
        print(f"going on from {STAGES[done_stage].name} step {done_step}")
    for number in range(done_stage, len(STAGES)):
        stage, first = STAGES[number], done_step if number == done_stage else 0
        data = Drawings(tokenizer.to_str(), stage, seed)
        loader = DataLoader(data, batch_size=None, sampler=range(first, stage.steps), num_workers=2, prefetch_factor=4)
        meter, began = Meter(out / "log.jsonl"), time.time()
        for step, batch in enumerate(loader, first):
            for optimizer, factor in zip(optimizers, (MUON, 1.0), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = factor * scheduled(stage, step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, parts, right = learner(batch, stage)
            loss.backward()
            nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            meter.add(parts, [] if right is None else turn_accuracy(batch, right))
            if (step + 1) % 50 == 0 or step + 1 == stage.steps:
                speed = stage.batch * (step + 1 - first) / (time.time() - began)
                meter.flush(stage=stage.name, step=step + 1, images_per_second=round(speed, 1))
            if (step + 1) % 500 == 0 or step + 1 == stage.steps:
                at = (number, step + 1) if step + 1 < stage.steps else (number + 1, 0)
                states = [optimizer.state_dict() for optimizer in optimizers]
                state = {"learner": learner.state_dict(), "optimizers": states, "stage": at[0], "step": at[1]}
                torch.save(state, out / "resume.tmp")
                (out / "resume.tmp").rename(resume)
    export(learner.model, tokenizer, out)


class Meter:
    """Averages since the last line of the log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self.parts: defaultdict[str, list[float]] = defaultdict(list)
        self.asked: Counter[str] = Counter()
        self.right: Counter[str] = Counter()

    def add(self, parts: dict[str, float], turns: Iterator[tuple[str, bool]] | Sequence[tuple[str, bool]]) -> None:
        """Takes in one step."""
        for name, value in parts.items():
            self.parts[name].append(value)
        for task, right in turns:
            self.asked[task] += 1
            self.right[task] += right

    def flush(self, **facts: object) -> None:
        """Prints one line, appends it to the log, starts anew."""
        line = {
            **facts,
            **{name: round(float(np.mean(values)), 4) for name, values in self.parts.items()},
            **{f"%{task}": round(100 * self.right[task] / asked, 1) for task, asked in sorted(self.asked.items())},
        }
        print(json.dumps(line), flush=True)
        with self.path.open("a") as log:
            log.write(json.dumps(line) + "\n")
        self.reset()


# ------------------------------------------------------------------------------------------------------------- export


def export(model: Idefics2, tokenizer: Tokenizer, out: Path) -> None:
    """Writes the published layout, in bfloat16."""
    save_model(model.to(torch.bfloat16), out)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    config = {**names, "additional_special_tokens": list(SPECIALS[3:]), "padding_side": "left", "model_max_length": 2048}
    size = {"longest_edge": LONGEST, "shortest_edge": SHORTEST}
    Idefics2Processor(
        ImageProcessor(size=size), ProcessorTokenizer(tokenizer, config), image_seq_len=CELLS[0] * CELLS[1]
    ).save_pretrained(out)
    generation = {"bos_token_id": BOS, "eos_token_id": [EOS, EOU], "pad_token_id": UNK, "bad_words_ids": [[FAKE], [IMAGE]]}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train from nothing, or go on")
    training.add_argument("--out", type=Path, default=Path("runs/nano"))
    training.add_argument("--seed", type=int, default=TRAIN_SEED)
    testing = commands.add_parser("evaluate", help="print the table of the README")
    testing.add_argument("--model", default=None, help="a folder; default: the embedded model")
    testing.add_argument("--each", type=int, default=400, help="questions per task")
    testing.add_argument("--seed", type=int, default=0)
    testing.add_argument("--save", type=Path, default=None, help="write the percentages to this JSON file, too")
    showing = commands.add_parser("demo", help="draw the images of `idefics demo`")
    showing.add_argument("--out", type=Path, default=EMBEDDED.parent / "demo")
    showing.add_argument("--seed", type=int, default=DEMO_SEED)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.out, seed=arguments.seed)
    elif arguments.command == "demo":
        demo(arguments.out, seed=arguments.seed)
    else:
        results = evaluate(arguments.model, each=arguments.each, seed=arguments.seed)
        if arguments.save is not None:
            rounded = {task: round(percent, 1) for task, percent in results.items()}
            facts = {"each": arguments.each, "seed": arguments.seed, "results": rounded}
            arguments.save.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
