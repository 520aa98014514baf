"""The learner of idefics2-nano: the model, and what warms its parts and is thrown away. Run through recipes/nano.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from idefics.config import Idefics2Config, VisionConfig
from idefics.data.sources.drawings import KINDS, PATCH_COLORS, PATCH_KINDS
from idefics.model.idefics2 import Idefics2
from idefics.model.perceiver import PerceiverResampler
from idefics.model.sight import Placed
from idefics.training.stage import Outcome
from nano_batches import CELLS, FAKE, IMAGE, PATCH, SLOTS, UNK, NanoBatch, NanoStage

MOST = 7  # counts from 0 to 6
TALLIES = (2, 7, 5)  # images, things and digits that a prompt or an image may have shown, zero included for the latter


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

    def forward(self, batch: NanoBatch, stage: NanoStage) -> Outcome:
        """The stage's loss, its parts, and which answers were right."""
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
        parted = {name: part.item() for name, part in parts.items()}
        return Outcome(loss, parted, [] if right is None else turn_accuracy(batch, right))

    def answers(self, batch: NanoBatch, latents_NLD: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the answers, and which of their tokens were right."""
        positions_BT = torch.arange(batch.ids_BT.shape[1]).expand_as(batch.ids_BT)
        seen = Placed(latents_NLD.flatten(0, 1), batch.ids_BT == IMAGE)
        hidden_BTD = self.model(batch.ids_BT, positions_BT=positions_BT, seen=seen)
        answered = batch.turns_BT[:, 1:] >= 0
        logits = self.model.logits(hidden_BTD[:, :-1][answered]).float()
        targets = batch.ids_BT[:, 1:][answered]
        turns = batch.turns_BT[:, 1:][answered]
        weights = turns.bincount().float().rsqrt()[turns]
        each = F.cross_entropy(logits, targets, reduction="none")
        return (each * weights).sum() / weights.sum(), logits.argmax(-1) == targets

    def tallies(self, batch: NanoBatch) -> Tensor:
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

    def nouns(self, batch: NanoBatch) -> Tensor:
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


def turn_accuracy(batch: NanoBatch, right: Tensor) -> Iterator[tuple[str, bool]]:
    """Task of each turn, and whether every token of its answer was right: what greedy decoding would answer."""
    turns = batch.turns_BT[:, 1:][batch.turns_BT[:, 1:] >= 0]
    wrong = torch.zeros(len(batch.tasks), dtype=torch.long).index_add_(0, turns, (~right).long())
    return zip(batch.tasks, (wrong == 0).tolist(), strict=True)
