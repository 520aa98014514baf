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
from functools import partial
from pathlib import Path

import torch

from idefics.api import EMBEDDED
from idefics.config import Idefics2Config
from idefics.config.presets import preset
from idefics.model.idefics2 import Idefics2
from idefics.processor.idefics2 import Idefics2Processor
from idefics.training.optimizer import SplitOptimizer
from idefics.training.schedule import Schedule
from idefics.training.stage import Stage
from idefics.training.trainer import Trainer
from idefics.weights.init import STD, initialize
from idefics.weights.save import save_model
from nano_batches import BOS, EOS, EOU, FAKE, IMAGE, UNK, NanoBatches, NanoStage, build_processor
from nano_evaluation import DEMO_SEED, demo, evaluate, rescore
from nano_learner import Learner, waves

TRAIN_SEED = 20_240_415
MUON = 14.0  # rate of matrices, in AdamW's

STAGES = (
    NanoStage(
        "symbols", crowds=0.0, steps=1000, batch=48, lr=1e-3, warmup=60, decay=1, turns=(3, 6), grows=(182, 131, 261, 391),
        painted=0.0, symbols=1.0,
    ),
    NanoStage(
        "tallies", crowds=0.0, steps=1100, batch=48, lr=0.9e-3, warmup=20, decay=1000, turns=(3, 6), pairs=0.5,
        painted=0.0, symbols=1.0, tallies=0.3,
    ),
    NanoStage("patches", crowds=0.75, steps=1200, batch=48, lr=1.5e-3, warmup=60, decay=250, patches=1.0),
    NanoStage(
        "nouns", crowds=0.0, steps=600, batch=48, lr=0.8e-3, warmup=20, decay=500, turns=(3, 6), pairs=0.5,
        painted=0.0, symbols=1.0, tallies=0.2, nouns=0.5,
    ),
    NanoStage(
        "latents", crowds=0.35, steps=500, batch=48, lr=1.4e-3, warmup=30, decay=420,
        patches=0.2, routes=0.2, names=0.5, latents=2.0,
    ),
    NanoStage(
        "answers", crowds=0.0, steps=900, batch=48, lr=0.6e-3, warmup=40, decay=820, pairs=0.45,
        patches=0.1, routes=0.02, names=0.1, latents=0.4, tallies=0.1, nouns=0.2, answers=1.0,
    ),
    NanoStage(
        "practice", crowds=0.0, steps=2400, batch=48, lr=0.5e-3, warmup=60, decay=2340, pairs=0.4, painted=0.7,
        favor=(("count", 2.5), ("number", 1.5)),
        symbols=1.0, patches=0.1, routes=0.02, names=0.1, latents=0.4, tallies=0.1, nouns=0.2, answers=1.0,
    ),
)  # fmt: skip


def train(out: Path, *, seed: int) -> None:
    """Runs all stages, or goes on where an interrupted run stopped; writes the checkpoint into `out`."""
    torch.manual_seed(seed)
    config = preset("idefics2-nano")
    assert isinstance(config, Idefics2Config)
    processor = build_processor(config, seed=seed)
    learner = Learner(config, processor.tokenizer.backend)
    initialize(learner.model, seed=seed)
    with torch.no_grad():
        learner.model.vision_model.embeddings.position_embedding.weight.copy_(waves(config.vision_config))
        # Words of unit size: of the usual 0.02 the first steps would rewrite what they mean.
        learner.model.text_model.embed_tokens.weight.div_(STD)
    optimizer = SplitOptimizer(learner.named_parameters(), matrices_faster=MUON)
    stages = [
        Stage(
            stage.name,
            Schedule(peak=stage.lr, steps=stage.steps, warmup=stage.warmup, decay=stage.decay),
            NanoBatches(processor, stage, seed),
            partial(learner, stage=stage),
            samples=stage.batch,
        )
        for stage in STAGES
    ]
    trainer = Trainer(
        learner, optimizer, out, autocast=torch.bfloat16, workers=2, report=lambda line: print(json.dumps(line), flush=True)
    )
    trainer.run(stages)
    export(learner.model, processor, out)


def export(model: Idefics2, processor: Idefics2Processor, out: Path) -> None:
    """Writes the published layout, in bfloat16."""
    save_model(model.to(torch.bfloat16), out)
    processor.save_pretrained(out)
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
    testing.add_argument("--answers", type=Path, default=None, help="keep what was answered in this file")
    again = commands.add_parser("rescore", help="print the table of answers that were kept, without a model")
    again.add_argument("answers", type=Path)
    showing = commands.add_parser("demo", help="draw the images of `idefics demo`")
    showing.add_argument("--out", type=Path, default=EMBEDDED.parent / "demo")
    showing.add_argument("--seed", type=int, default=DEMO_SEED)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.out, seed=arguments.seed)
    elif arguments.command == "demo":
        demo(arguments.out, seed=arguments.seed)
    elif arguments.command == "rescore":
        rescore(arguments.answers)
    else:
        results = evaluate(arguments.model, each=arguments.each, seed=arguments.seed, answers=arguments.answers)
        if arguments.save is not None:
            rounded = {task: round(percent, 1) for task, percent in results.items()}
            facts = {"each": arguments.each, "seed": arguments.seed, "results": rounded}
            arguments.save.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
