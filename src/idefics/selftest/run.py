"""Runs all checks, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from idefics.api import Idefics
from idefics.errors import OutOfMemory
from idefics.machine.progress import Steps
from idefics.selftest import answering, answers, decoding, files, sight, vision, weights
from idefics.selftest.checks import Check
from idefics.selftest.subject import Subject

__all__ = ["CHECKS", "FINITE", "verify"]

FINITE = "weights are finite"

CHECKS: Mapping[str, Callable[[Subject], Check]] = {
    "no id outside the embedding": files.ids_in_range,
    "processor, config and generation_config agree": files.parts_agree,
    "special tokens round trip": files.special_tokens_round_trip,
    "text after an image starts anew": files.segments_start_anew,
    "chat template renders": files.chat_template_renders,
    "weights are there": weights.weights_arrived,
    FINITE: weights.weights_finite,  # before all that compute with them
    "packed layers compute what their weights do": weights.packed_equals_plain,
    "patch positions follow the published rule": vision.patch_positions,
    "partial patches are ignored": vision.partial_patches_ignored,
    "pixel padding is inert": vision.pixel_padding_inert,
    "splitting: tokens match sub-images": vision.split_parity,
    "logits are finite": answers.logits_finite,
    "image tokens hold their own image's latents": vision.swapped_images,
    "images are isolated": vision.images_isolated,
    "tokens see the last image before them": sight.last_image_only,
    "tokens that see no image get exactly zero": sight.blind_tokens,
    "a document sees no image of the one before it": sight.documents_apart,
    "the answer depends on the image": answers.depends_on_image,
    "the answer depends on the order of images": answers.depends_on_order,
    "cache equals full forward": decoding.cache_equals_full,
    "batch equals single": decoding.batch_equals_single,
    "positions count tokens, not padding": decoding.positions_count_tokens,
    "text padding is inert": decoding.padding_inert,
    "sliding window is respected": decoding.window_respected,
    "answers together equal a full forward of each": answering.answers_equal_full,
    "a second turn goes on where the first ended": answering.second_turn_equals_full,
    "requests do not hear each other": answering.requests_apart,
    "answers keep the sliding window": answering.paged_window_respected,
    "greedy decoding is repeatable": answers.greedy_repeatable,
}


def verify(loaded: Idefics, *, progress: Steps | None = None) -> list[Check]:
    """Tests a loaded model against silently wrong output: about 2,000 tokens of forward passes, whatever its size.

    Args:
        loaded: what `idefics.load` returned.
        progress: told what is being tested, before it is.

    Returns:
        One result per check, in order. A check that cannot run to its end has failed and says why.

    Raises:
        OutOfMemory: the machine is too small even for the short prompts of the test.
    """
    subject = Subject(loaded)
    results: list[Check] = []
    for done, (name, check) in enumerate(CHECKS.items()):
        if progress is not None:
            progress(name, done, len(CHECKS))
        result = attempt(name, check, subject)
        if not result.passed and any(earlier.name == FINITE and not earlier.passed for earlier in results):
            result = replace(result, measured="-", allowed="-", explanation="says nothing while the weights are not finite")
        results.append(result)
    return results


@torch.inference_mode()
def attempt(name: str, check: Callable[[Subject], Check], subject: Subject) -> Check:
    """One check; what it raises is a failure of the check.

    Raises:
        OutOfMemory: as `verify`.
    """
    try:
        return check(subject)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"not enough memory to test that {name}; use a 16-bit dtype, another device or device_map") from error
    except Exception as error:  # whatever it is, it is what this model does with a plain prompt
        reason = f"{type(error).__name__}: {error}"
        return Check(name=name, passed=False, measured="stopped", allowed="runs to its end", explanation=reason)
