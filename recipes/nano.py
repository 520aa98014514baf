"""idefics2-nano, from nothing: the small Idefics2 that ships inside the package, trained on pictures it draws itself.

    python recipes/nano.py train --out runs/nano          # tokenizer, seven stages, checkpoint in the published layout
    python recipes/nano.py evaluate [--model runs/nano]   # the table of the README, on drawings never trained on
    python recipes/nano.py demo                           # the images of `idefics demo`

Joined from random weights such a model learns colours and little else, so its parts are warmed before they are joined, in
the spirit of the real recipe, which starts from SigLIP and Mistral (arXiv 2405.02246):

1. *symbols*: the decoder alone learns to read, count and compare. Where an image's latents will stand it sees symbols: one
   vector per cell of a coarse grid, made of the decoder's own words for what stands in the cell. Numbers grow from 1 to 4
   digits and groups from 3 to 6 things while this stage runs;
2. *tallies*: the same, and halfway through the decoder every symbol must know which image it is of, and how many things and
   digits that image has shown so far;
3. *patches*: the vision tower alone names the kind and colour of what covers each patch (the drawings know), mostly on
   crowds: pictures so full of things and digits that a patch in two has something to learn from;
4. *nouns*: the decoder on symbols again; before its last layer every noun must know how many such things each image shows.
   Only then does it begin to tell which of two images shows a thing (docs/log/nano.md);
5. *latents*: the connector learns to write the symbols: latent i of the resampler becomes the symbol of cell i, and two of
   its heads are told to look there;
6. *answers*: everything learns to answer, from pixels; the other tasks stay on with small weights;
7. *practice*: the same once more from a lower rate, with more counting and reading; three batches in ten are symbols again.

Loss on the answers and their `<end_of_utterance>` only.

Matrices are trained with Muon (orthogonalised momentum), everything else with AdamW: after the same time the tower's loss
on patches is 1.5 with Muon and 2.1 without (docs/log/nano.md).

Reproducible: every batch is a function of (seed, stage, step); steps, not minutes, end a stage.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from idefics.api import EMBEDDED
from idefics.config import Idefics2Config, VisionConfig
from idefics.config.presets import preset
from idefics.data.drawings import KINDS, PATCH_COLORS, PATCH_KINDS
from idefics.model.idefics2 import Idefics2
from idefics.model.perceiver import PerceiverResampler
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.image import ImageProcessor
from idefics.processor.tokenizer import Tokenizer as ProcessorTokenizer
from idefics.weights.init import STD, initialize
from idefics.weights.save import save_model
from nano_batches import (
    BOS,
    CELLS,
    EOS,
    EOU,
    FAKE,
    IMAGE,
    PATCH,
    SLOTS,
    SPECIALS,
    UNK,
    Batch,
    Drawings,
    Stage,
    build_tokenizer,
)  # fmt: skip
from nano_evaluation import DEMO_SEED, LONGEST, SHORTEST, demo, evaluate

TRAIN_SEED = 20_240_415


STAGES = (
    Stage(
        "symbols", crowds=0.0, steps=1000, batch=48, lr=1e-3, warmup=60, decay=1, turns=(3, 6), grows=(182, 131, 261, 391),
        painted=0.0, symbols=1.0,
    ),
    Stage(
        "tallies", crowds=0.0, steps=1100, batch=48, lr=0.9e-3, warmup=20, decay=1000, turns=(3, 6), pairs=0.5,
        painted=0.0, symbols=1.0, tallies=0.3,
    ),
    Stage("patches", crowds=0.75, steps=1200, batch=48, lr=1.5e-3, warmup=60, decay=250, patches=1.0),
    Stage(
        "nouns", crowds=0.0, steps=600, batch=48, lr=0.8e-3, warmup=20, decay=500, turns=(3, 6), pairs=0.5,
        painted=0.0, symbols=1.0, tallies=0.2, nouns=0.5,
    ),
    Stage(
        "latents", crowds=0.35, steps=500, batch=48, lr=1.4e-3, warmup=30, decay=420,
        patches=0.2, routes=0.2, names=0.5, latents=2.0,
    ),
    Stage(
        "answers", crowds=0.0, steps=900, batch=48, lr=0.6e-3, warmup=40, decay=820, pairs=0.45,
        patches=0.1, routes=0.02, names=0.1, latents=0.4, tallies=0.1, nouns=0.2, answers=1.0,
    ),
    Stage(
        "practice", crowds=0.0, steps=2400, batch=48, lr=0.5e-3, warmup=60, decay=2340, pairs=0.4, painted=0.7,
        favor=(("count", 2.5), ("number", 1.5)),
        symbols=1.0, patches=0.1, routes=0.02, names=0.1, latents=0.4, tallies=0.1, nouns=0.2, answers=1.0,
    ),
)  # fmt: skip
MUON = 14.0
MOST = 7  # counts from 0 to 6
TALLIES = (2, 7, 5)  # images, things and digits that a prompt or an image may have shown, zero included for the latter


# ----------------------------------------------------------------------------------------------------------- learning


class Symbols(nn.Module):
    """Vectors for what stands in a cell, made of the decoder's own words for it, so that reading them is copying.

    A symbol is the sum of the embeddings of the words for kind and colour, and of a vector for the cell; what stands second
    in a cell is turned by a matrix, so that its words are not taken for the first's.
    """

    def __init__(self, words: nn.Embedding, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.words = words
        self.kind_ids, self.color_ids = (
            torch.tensor([UNK, *(tokenizer.encode(name).ids[-1] for name in names[1:])])
            for names in (PATCH_KINDS, PATCH_COLORS)
        )
        self.second = nn.Linear(words.embedding_dim, words.embedding_dim, bias=False)
        self.cells = nn.Embedding(CELLS[0] * CELLS[1], words.embedding_dim)

    def forward(self, kinds_NLS: Tensor, colors_NLS: Tensor) -> Tensor:
        """(N, L, D), about as large as a resampler's latents."""
        what_NLSD = self.words(self.kind_ids[kinds_NLS]) + self.words(self.color_ids[colors_NLS])
        first_NLD, second_NLD = (what_NLSD * (kinds_NLS > 0)[..., None]).unbind(2)
        symbols_NLD: Tensor = (first_NLD + self.second(second_NLD) + self.cells.weight) * 3**-0.5
        return symbols_NLD


class Learner(nn.Module):
    """The model, and what warms its parts and is thrown away."""

    def __init__(self, config: Idefics2Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = Idefics2(config, backend="reference")  # faster than SDPA in bf16 on CPUs without AMX
        self.patch_head = nn.Linear(config.vision_config.hidden_size, len(PATCH_KINDS) + len(PATCH_COLORS))
        self.cell_head = nn.Linear(config.text_config.hidden_size, SLOTS * (len(PATCH_KINDS) + len(PATCH_COLORS)))
        self.symbols = Symbols(self.model.text_model.embed_tokens, tokenizer)
        self.tally_head = nn.Linear(config.text_config.hidden_size, sum(TALLIES))
        self.noun_head = nn.Linear(config.text_config.hidden_size, 2 * MOST)
        self.inputs_BTD: dict[int, Tensor] = {}  # of the decoder's layers
        for index, layer in enumerate(self.model.text_model.layers):
            layer.register_forward_pre_hook(lambda _, args, index=index: self.inputs_BTD.update({index: args[0]}))

    def forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, dict[str, float], Tensor | None]:
        """The stage's loss, its parts, and which answer tokens were right (a bool per token of `turns_BT >= 0`)."""
        parts: dict[str, Tensor] = {}
        right = None
        symbols_NLD = self.symbols(batch.kinds_NLS, batch.colors_NLS)
        if batch.pixels_NHWC is None:
            parts["symbols"], right = self.answers(batch, symbols_NLD)
            if stage.tallies:
                parts["tallies"] = self.tallies(batch)
            if stage.nouns:
                parts["nouns"] = self.nouns(batch)
        else:
            images, height, width, _ = batch.pixels_NHWC.shape
            h, w = height // PATCH, width // PATCH
            pixels = batch.pixels_NHWC.float().div(127.5).sub(1.0).permute(0, 3, 1, 2)
            patches = pixels.reshape(images, 3, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(images * h * w, -1)
            features_PD = self.model.vision_model(patches, [(h, w)] * images)
            parts["patches"] = label_loss(self.patch_head(features_PD), batch.kinds_NP, batch.colors_NP)
            if stage.names:
                connector = self.model.connector
                context_PD = connector.modality_projection(features_PD)
                latents_NLD = connector.perceiver_resampler(context_PD, [h * w] * images)
                named = self.cell_head(latents_NLD).unflatten(-1, (SLOTS, -1)).flatten(0, 2)
                parts["names"] = label_loss(named, batch.kinds_NLS, batch.colors_NLS)
                parts["latents"] = symbol_loss(latents_NLD, symbols_NLD.detach(), batch.kinds_NLS)
                parts["routes"] = route_loss(connector.perceiver_resampler, context_PD.unflatten(0, (images, -1)), h, w)
            if stage.answers:
                parts["answers"], right = self.answers(batch, latents_NLD)
                parts["tallies"], parts["nouns"] = self.tallies(batch), self.nouns(batch)
        loss = sum((getattr(stage, name) * part for name, part in parts.items()), start=torch.zeros(()))
        return loss, {name: part.item() for name, part in parts.items()}, right

    def answers(self, batch: Batch, latents_NLD: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the answers, and which of their tokens were right."""
        positions_BT = torch.arange(batch.ids_BT.shape[1]).expand_as(batch.ids_BT)
        hidden_BTD = self.model(batch.ids_BT, positions_BT=positions_BT, seen=latents_NLD)
        answered = batch.turns_BT[:, 1:] >= 0
        logits = self.model.logits(hidden_BTD[:, :-1][answered]).float()
        targets = batch.ids_BT[:, 1:][answered]
        turns = batch.turns_BT[:, 1:][answered]
        weights = turns.bincount().float().rsqrt()[turns]
        each = F.cross_entropy(logits, targets, reduction="none")
        return (each * weights).sum() / weights.sum(), logits.argmax(-1) == targets

    def tallies(self, batch: Batch) -> Tensor:
        """How badly the decoder knows, halfway and at each latent, which image it is of and what that has shown so far.

        Returns:
            The sum of three cross-entropies: of the image, and of its things and digits up to this latent.
        """
        places_BT = batch.ids_BT == IMAGE
        logits = self.tally_head(self.inputs_BTD[len(self.inputs_BTD) // 2][places_BT]).float().split(TALLIES, dim=-1)
        digits_NLS = batch.kinds_NLS > len(KINDS)
        things_NL, digits_NL = ((batch.kinds_NLS > 0) & ~digits_NLS).sum(-1).cumsum(1), digits_NLS.sum(-1).cumsum(1)
        which = (batch.ids_BT == FAKE).cumsum(1)[places_BT] - 1
        targets = (which, things_NL.flatten(), digits_NL.flatten())
        each = [F.cross_entropy(found, due.clamp(max=n - 1)) for found, due, n in zip(logits, targets, TALLIES, strict=True)]
        return torch.stack(each).sum()

    def nouns(self, batch: Batch) -> Tensor:
        """Cross-entropy of how many things each image shows of what a noun names, known before the last layer."""
        logits_BTIC = self.noun_head(self.inputs_BTD[len(self.inputs_BTD) - 1]).float().unflatten(-1, (2, MOST))
        return F.cross_entropy(logits_BTIC.flatten(0, 2), batch.counts_BTI.flatten(), ignore_index=-1)


def label_loss(logits: Tensor, kinds: Tensor, colors: Tensor) -> Tensor:
    """Cross-entropy of kinds and colours; what is empty weighs as much, all together, as what is not."""
    logits = logits.float()
    kind_logits, color_logits = logits[:, : len(PATCH_KINDS)], logits[:, len(PATCH_KINDS) :]
    each = F.cross_entropy(kind_logits, kinds.flatten(), reduction="none")
    each = each + F.cross_entropy(color_logits, colors.flatten(), reduction="none")
    return (each * evened(kinds.flatten())).sum()


def symbol_loss(latents_NLD: Tensor, symbols_NLD: Tensor, kinds_NLS: Tensor) -> Tensor:
    """Mean squared distance from each latent to its cell's symbol; full and empty cells weigh alike."""
    each_NL = (latents_NLD.float() - symbols_NLD.float()).square().mean(-1)
    return (each_NL.flatten() * evened(kinds_NLS[..., 0].flatten())).sum()


def evened(kinds: Tensor) -> Tensor:
    """Weights that sum to one, half of it for what is empty (kind 0)."""
    full = kinds > 0
    return torch.where(full, 0.5 / full.sum().clamp(min=1), 0.5 / (~full).sum().clamp(min=1))


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
    assert isinstance(config, Idefics2Config)
    tokenizer = build_tokenizer(config.text_config.vocab_size, seed=seed)
    tokenizer.save(str(out / "tokenizer.json"))
    learner = Learner(config, tokenizer)
    initialize(learner.model, seed=seed)
    with torch.no_grad():
        learner.model.vision_model.embeddings.position_embedding.weight.copy_(waves(config.vision_config))
        # Words of unit size: of the usual 0.02 the first steps would rewrite what they mean.
        learner.model.text_model.embed_tokens.weight.div_(STD)
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
