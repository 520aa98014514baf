from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import invariants
from fakes import tiny_idefics, write_tiny_checkpoint
from idefics.cli import main
from idefics.config.presets import preset
from idefics.errors import OutOfMemory
from idefics.model.nearness import disagreements, distance, tolerance
from idefics.selftest import CHECKS, verify
from idefics.selftest.checks import judge
from idefics.selftest.subject import Subject
from idefics.selftest.vision import patch_positions, table_cells
from idefics.weights.idefics2 import TABLE

DTYPES = (torch.float32, torch.bfloat16)
BACKENDS = ("sdpa", "reference", "blocked")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("std", [0.02, 0.2])
def test_right_models_pass(dtype, backend, std):
    loaded = tiny_idefics(dtype=dtype, backend=backend, std=std)
    checks = verify(loaded)
    assert not [check for check in checks if not check.passed]
    assert [check.name for check in checks] == list(CHECKS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_invariants(dtype, backend):
    loaded = tiny_idefics(dtype=dtype, backend=backend, std=0.2, seed=1)
    invariants.assert_batch_matches_single(loaded)
    invariants.assert_cache_matches_full(loaded)
    invariants.assert_padding_is_inert(loaded)
    invariants.assert_images_isolated(loaded)
    invariants.assert_split_parity(loaded)
    invariants.assert_image_matters(loaded)
    invariants.assert_files_agree(loaded)


def test_an_invariant_that_fails_says_what_it_measured():
    loaded = tiny_idefics(std=0.2)
    loaded.model.connector.modality_projection.down_proj.weight.data.zero_()
    with pytest.raises(AssertionError, match="the latents do not depend on the pixels"):
        invariants.assert_image_matters(loaded)


@pytest.mark.parametrize("splitting", [False, True])
def test_base_models_and_models_without_window_pass(splitting):
    loaded = tiny_idefics(end_of_utterance=False, sliding_window=None, std=0.2)
    loaded.processor.image_processor = loaded.processor.image_processor.with_options(do_image_splitting=splitting)
    checks = {check.name: check for check in verify(loaded)}
    assert all(check.passed for check in checks.values())
    assert checks["chat template renders"].measured == "none"
    assert checks["sliding window is respected"].measured == "none"


def test_progress_names_every_check_before_it_runs():
    told = []
    verify(tiny_idefics(), progress=lambda name, done, total: told.append((name, done, total)))
    assert [name for name, _, _ in told] == list(CHECKS)
    assert [done for _, done, _ in told] == list(range(len(CHECKS)))
    assert {total for _, _, total in told} == {len(CHECKS)}


def test_a_check_that_raises_has_failed_and_says_why():
    def broken(_: Subject):
        raise ZeroDivisionError("over there")

    check = invariants.result(broken, tiny_idefics())
    assert not check.passed
    assert check.explanation == "ZeroDivisionError: over there"


def test_no_memory_is_not_a_fault_of_the_model():
    def greedy(_: Subject):
        raise torch.OutOfMemoryError

    with pytest.raises(OutOfMemory, match="16-bit"):
        invariants.result(greedy, tiny_idefics())


def test_rename_table_is_bijective():
    model = tiny_idefics().model
    ours = [name for name, _ in model.named_parameters()]
    dropped = ["model.vision_model.embeddings.position_ids"]
    invariants.assert_rename_is_bijective(TABLE, [*map(TABLE.published, ours), *dropped], ours)
    with pytest.raises(AssertionError, match="not both ways"):
        invariants.assert_rename_is_bijective(TABLE, list(map(TABLE.published, ours))[1:], ours)


def test_tolerance_grows_with_depth_and_eps():
    large, tiny = preset("idefics2-8b"), preset("tiny-random-idefics2")
    assert tolerance(large, torch.float32) > tolerance(tiny, torch.float32)
    assert tolerance(large, torch.bfloat16) == 8 * tolerance(large, torch.float16)
    assert tolerance(large, torch.bfloat16) < 0.15


def test_distance_sees_one_wrong_vector_and_nan():
    right = torch.ones(100, 4)
    wrong = right.clone()
    wrong[50] = -1
    assert distance(right, right) == 0
    assert distance(wrong, right) == 2
    wrong[50] = torch.nan
    assert distance(wrong, right) == float("inf")
    assert distance(right[:99], right) == float("inf")
    assert not judge("x", float("inf"), float("inf"), holds="", broken="").passed


def test_ties_within_rounding_are_no_disagreement():
    expected = torch.tensor([[1.0, 0.999, -1.0], [1.0, 0.0, -1.0]])
    assert disagreements(torch.tensor([[0.0, 1.0, 0.0]]), expected[:1], allowed=0.01) == 0
    assert disagreements(torch.tensor([[0.0, 1.0, 0.0]]), expected[1:], allowed=0.01) == 1


def test_the_published_rule_is_the_formula():
    """Integer arithmetic with exceptions, for the published side, against float32 as torch computes it."""
    boundaries = torch.arange(1 / 70, 1.0, 1 / 70)
    for n in range(1, 71):
        fractions = torch.arange(0, 1 - 1e-6, float(torch.tensor(1.0) / n))
        assert table_cells(n, side=70) == torch.bucketize(fractions, boundaries, right=True).tolist()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_patch_positions_of_the_published_table_in_every_dtype(dtype):
    check = invariants.result(patch_positions, tiny_idefics(side=70, dtype=dtype))
    assert check.passed, check.measured


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), std=0.2)


def test_command_prints_a_table_and_a_summary(checkpoint, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", str(checkpoint), "--device", "cpu"])
    out = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "batch equals single" in out
    assert out.rstrip().splitlines()[-1] == f"{len(CHECKS)} of {len(CHECKS)} checks passed"


def test_command_fails_on_broken_weights(checkpoint, tmp_path, capsys):
    loaded = tiny_idefics(std=0.2)
    loaded.model.text_model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    from idefics.weights.save import save_model

    save_model(loaded.model, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(SystemExit) as exit_:
        main(["verify", "--model", str(tmp_path), "--device", "cpu", "--json"])
    assert exit_.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    failed = {check["name"]: check for check in report["checks"] if not check["passed"]}
    assert "model.text_model.layers.1.mlp.up_proj.weight" in failed["weights are finite"]["explanation"]
    assert {"logits are finite", "batch equals single", "greedy decoding is repeatable"} <= set(failed)


def test_command_refuses_two_models(checkpoint, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", str(checkpoint), "--model", str(checkpoint)])
    assert exit_.value.code == 1
    assert "give one" in capsys.readouterr().err
