"""`verify` on a model whose tokens look at images apart from the text: right ones pass, and each break is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import idefics
from idefics.api import Idefics
from idefics.cli import main
from idefics.model import gated_cross_attention
from idefics.model import idefics1 as network
from idefics.model.gated_cross_attention import route
from idefics.model.idefics1 import Idefics1
from idefics.processor import idefics1, image_mask
from idefics.selftest import CHECKS, answers, decoding, sight, verify
from idefics.selftest.checks import Check
from idefics.selftest.run import attempt
from idefics.selftest.subject import Subject
from idefics.weights.create import create_checkpoint
from idefics.weights.init import initialize
from mutations import Mutation, registry

BROKEN, caught_by = registry()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_checkpoint("tiny-random-idefics", tmp_path_factory.mktemp("sight") / "tiny")


@pytest.fixture
def loaded(folder: Path) -> Idefics:
    found = idefics.load(folder)
    initialize(found.model, seed=1, std=0.2)  # every part matters to the output, as after training
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_right_models_pass(folder: Path, dtype: str, attention: str) -> None:
    checks = verify(idefics.load(folder, dtype=dtype, attention=attention))  # type: ignore[arg-type]
    assert [check for check in checks if not check.passed] == []
    assert [check.name for check in checks] == list(CHECKS)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(folder)])
    assert not ended.value.code
    assert f"{len(CHECKS)} of {len(CHECKS)} checks passed" in capsys.readouterr().out


@caught_by(sight.blind_tokens, sight.last_image_only)
def text_before_an_image_sees_it(_: Idefics, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "route", lambda image_BT, *, images: route(image_BT.clamp(min=0), images=images))


@caught_by(sight.last_image_only)
def every_token_sees_the_first_image(_: Idefics, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "route", lambda image_BT, *, images: route(image_BT.clamp(max=0), images=images))


@caught_by(sight.last_image_only, answers.depends_on_image)
def nobody_sees(_: Idefics, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "route", lambda image_BT, *, images: route(image_BT.clamp(max=-1), images=images))


@caught_by(answers.depends_on_image)
def gates_closed(loaded: Idefics, _: pytest.MonkeyPatch) -> None:
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("alpha_cross_attn"):
            parameter.data.zero_()


@caught_by(decoding.batch_equals_single, decoding.padding_inert, answers.greedy_repeatable)
def later_tokens_are_blind(_: Idefics, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Idefics1, "sources_remain", False)


@caught_by(decoding.batch_equals_single)
def rows_look_at_the_first_rows_images(_: Idefics, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "global_images", lambda seen_BT, _: seen_BT)


@caught_by(sight.blind_tokens)
def blind_tokens_get_a_mean(_: Idefics, patch: pytest.MonkeyPatch) -> None:
    forward = gated_cross_attention.CrossAttention.forward

    def leaking(self, x_BTD, view):  # type: ignore[no-untyped-def]
        out = forward(self, x_BTD, view)
        return out + out.mean(dim=(0, 1), keepdim=True)

    patch.setattr(gated_cross_attention.CrossAttention, "forward", leaking)


@caught_by(sight.documents_apart)
def documents_run_into_each_other(_: Idefics, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(idefics1, "seen_images", lambda ids, **names: image_mask.seen_images(ids, **{**names, "eos_token_id": None}))


@pytest.mark.parametrize(("mutation", "check"), BROKEN, ids=lambda f: f.__name__)
def test_every_break_is_seen(
    loaded: Idefics, monkeypatch: pytest.MonkeyPatch, mutation: Mutation, check: Callable[[Subject], Check]
) -> None:
    with torch.inference_mode():
        whole = attempt(check.__name__, check, Subject(loaded))
    assert whole.passed, whole
    mutation(loaded, monkeypatch)
    assert not attempt(check.__name__, check, Subject(loaded)).passed


def test_every_check_of_sight_is_seen_to_fail() -> None:
    assert set(sight.__all__) <= {check.__name__ for _, check in BROKEN}
