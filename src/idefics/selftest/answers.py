"""Checks of what comes out: it is finite, repeatable, and depends on the images and their order.

Letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import torch

from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.engine.sampling_params import sampling_params
from idefics.model.nearness import disagreements, distance
from idefics.selftest.checks import Check, number
from idefics.selftest.dictation import BLOCK
from idefics.selftest.subject import Subject, continued

__all__ = ["depends_on_image", "depends_on_order", "greedy_repeatable", "logits_finite"]

ANSWER = 4


def logits_finite(subject: Subject) -> Check:
    """No NaN or infinity comes out in this dtype."""
    hidden = [run.hidden_TD for run in subject.runs]
    bad = sum(int((~torch.isfinite(subject.model.logits(one))).any(-1).sum()) for one in hidden)
    total = sum(map(len, hidden))
    return Check(
        name="logits are finite",
        passed=bad == 0,
        measured=f"{bad} of {total} positions bad",
        allowed="0",
        explanation=f"every position of three prompts in {subject.model.dtype}"
        + ("" if bad == 0 else "; the weights are broken or overflow in this dtype (try bfloat16 or float32)"),
    )


def greedy_repeatable(subject: Subject) -> Check:
    """Greedy decoding twice gives one answer, and each of its tokens is the likeliest of a full forward.

    Small blocks and passes, so that the prompt is read in pieces the first time and found in the cache the second.
    """
    engine = Engine(subject.model, Limits(rows=2, tokens=7, block=BLOCK, graphs=subject.graphs))
    params = [sampling_params({}, {"max_new_tokens": ANSWER})]
    first, second = (engine.generate(subject.row(1), params)[0][0] for _ in range(2))
    answer = torch.tensor(first.token_ids, device=subject.device)
    whole = continued(subject.row(1), first.token_ids[:-1]).to(subject.device)
    positions_BT = torch.arange(whole.input_ids_BT.shape[1], device=subject.device)[None]
    seen = subject.model.see(whole, latents_NLD=subject.alone[0])
    hidden_BTD = subject.model(whole.input_ids_BT, positions_BT=positions_BT, seen=seen)
    expected_TV = subject.model.logits(hidden_BTD[0, -len(answer) :]).float()
    off = disagreements(torch.nn.functional.one_hot(answer, expected_TV.shape[-1]), expected_TV, allowed=subject.allowed)
    logprobs_T = expected_TV.log_softmax(-1).gather(-1, answer.to(expected_TV.device)[:, None])[:, 0]
    error = float((torch.tensor(first.logprobs) - logprobs_T.cpu()).abs().max())
    # One logit among many may be off by several times the mean; so may the sum that it is compared with.
    limit = 4 * subject.allowed * float(expected_TV.square().mean()) ** 0.5
    changed = sum(a != b for a, b in zip(first.token_ids, second.token_ids, strict=True))
    passed = changed == 0 and off == 0 and error <= limit
    return Check(
        name="greedy decoding is repeatable",
        passed=passed,
        measured=f"{changed} changed, {off} not the likeliest, {number(error)} in log-probability",
        allowed=f"0, 0 (ties aside), <= {number(limit)}",
        explanation=f"{ANSWER} tokens about one image, decoded twice, against a full forward"
        + ("" if passed else "; the decoding loop and the model disagree"),
    )


def depends_on_image(subject: Subject) -> Check:
    """Another image in the same place gives other logits, by more than repeating the same computation does."""
    image = subject.pixels[0]
    other = subject.model.encode_images([-image])
    run = subject.runs[1]
    end = run.prompt - 1
    logits = distance(subject.model.logits(subject.run(1, other).hidden_TD[end:]), subject.model.logits(run.hidden_TD[end:]))
    latents = distance(other, subject.alone[0])
    return _must_differ(
        subject,
        "the answer depends on the image",
        logits,
        holds=f"logits after an image and its inverse (latents differ by {number(latents)})",
        broken="the latents do not depend on the pixels" if latents <= subject.least else "the decoder ignores the latents",
    )


def depends_on_order(subject: Subject) -> Check:
    """Two images in the other order give other logits."""
    latents_NLD = subject.latents(2)
    assert latents_NLD is not None
    run, swapped = subject.runs[2], subject.run(2, latents_NLD.flip(0))
    end = run.prompt - 1
    logits = distance(subject.model.logits(swapped.hidden_TD[end:]), subject.model.logits(run.hidden_TD[end:]))
    return _must_differ(
        subject,
        "the answer depends on the order of images",
        logits,
        holds="logits after two images and after the same two swapped",
        broken="'the first image' means nothing to this model",
    )


def _must_differ(subject: Subject, name: str, measured: float, *, holds: str, broken: str) -> Check:
    least = subject.least
    passed = least < measured < float("inf")
    return Check(
        name=name,
        passed=passed,
        measured=number(measured),
        allowed=f"> {number(least)}",
        explanation=holds if passed else f"{broken} ({holds})",
    )
