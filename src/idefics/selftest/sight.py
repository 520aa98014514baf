"""Checks of models whose tokens look at images apart from the text: who sees what, and what those see who see nothing.

Letters: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from idefics.engine.prefill import Prefill
from idefics.inputs import ModelInputs
from idefics.model.nearness import distance
from idefics.selftest.checks import Check, inapplicable, judge
from idefics.selftest.subject import Subject

__all__ = ["blind_tokens", "documents_apart", "last_image_only"]

AMONG = "images stand among the tokens"


def last_image_only(subject: Subject) -> Check:
    """A token's output of the first gated block, whose input no image has touched, changes with its own image only."""
    name = "tokens see the last image before them"
    if not subject.crossed:
        return inapplicable(name, AMONG)
    latents_NLD = subject.latents(2)
    assert latents_NLD is not None
    inverted = subject.model.encode_images([-image for image in subject.pixels[:2]])
    usual = _first_block(subject, latents_NLD)
    seen_T = _due(subject, subject.runs[2].ids_T)
    leaked, blind = 0.0, False
    for image in range(2):
        changed = latents_NLD.clone()
        changed[image] = inverted[image]
        found = _first_block(subject, changed)
        others = seen_T != image
        leaked = max(leaked, distance(found[others], usual[others]))
        blind |= distance(found[~others], usual[~others]) <= subject.least
    return judge(
        name,
        float("inf") if blind else leaked,
        subject.least,
        holds="the first gated block while each of two images is inverted",
        broken="tokens do not see their own image (gates of zero?)"
        if blind
        else "an image reaches tokens that must not see it",
    )


def blind_tokens(subject: Subject) -> Check:
    """Cross-attention gives exactly zero to tokens before the first image, to rows without one, and to padding."""
    name = "tokens that see no image get exactly zero"
    if not subject.crossed:
        return inapplicable(name, AMONG)
    seen_BT = torch.stack([_due(subject, ids) for ids in subject.batch.input_ids_BT])
    return _exactly_zero(
        name,
        subject,
        subject.batch,
        seen_BT < 0,
        holds="a batch with none, one and two images",
        broken="text that comes before an image is changed by it",
    )


def documents_apart(subject: Subject) -> Check:
    """Where two documents are packed in one row, cross-attention gives exactly zero to the second before its own image."""
    name = "a document sees no image of the one before it"
    eos = subject.processor.tokenizer.eos_token
    if not subject.crossed or eos is None:
        return inapplicable(name, AMONG if eos is not None else "the tokenizer has nothing that ends a document")
    packed = subject.inputs([f"{{i}}a{eos}b{{i}}c"], [subject.pictures[:2]])
    shown, blind = False, []
    for token in packed.input_ids_BT[0].tolist():
        shown |= token == subject.config.image_token_id
        blind.append(not shown)
        shown &= token != subject.processor.tokenizer.eos_token_id
    return _exactly_zero(
        name,
        subject,
        packed,
        torch.tensor([blind]),
        holds=f"two documents with an image each and {eos} between them",
        broken="a document is changed by the image of another",
    )


def _exactly_zero(name: str, subject: Subject, inputs: ModelInputs, blind_BT: Tensor, *, holds: str, broken: str) -> Check:
    """Whether all gated blocks give zeros to these tokens, which see no image."""
    outputs: list[Tensor] = []

    def spy(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(output.detach())

    blocks = [module for part, module in subject.model.named_modules() if part.endswith(".cross_attn")]
    handles = [block.register_forward_hook(spy) for block in blocks]
    try:
        rows = len(inputs.input_ids_BT)
        Prefill(subject.model, inputs, rows=range(rows), rooms=[1] * rows)
    finally:
        for handle in handles:
            handle.remove()
    wrong = sum(int((output.cpu()[blind_BT] != 0).any(-1).sum()) for output in outputs)
    return Check(
        name=name,
        passed=wrong == 0 and len(outputs) == len(blocks),
        measured=f"{wrong} outputs are not zero",
        allowed="0",
        explanation=f"{len(blocks)} gated blocks over {holds}" + ("" if wrong == 0 else f"; {broken}"),
    )


def _due(subject: Subject, ids_T: Tensor) -> Tensor:
    """Which image each token should see, by counting image tokens; -1 before the first."""
    shown_T: Tensor = (ids_T == subject.config.image_token_id).cumsum(0).cpu()
    return shown_T - 1


def _first_block(subject: Subject, latents_NLD: Tensor) -> Tensor:
    """(T, D): what the first gated block makes of the prompt with two images."""
    found: list[Tensor] = []
    block = next(module for part, module in subject.model.named_modules() if part.endswith(".cross_attn"))
    handle = block.register_forward_hook(lambda _, __, output: found.append(output.detach()[0].cpu()))
    try:
        subject.run(2, latents_NLD)
    finally:
        handle.remove()
    return found[0]
