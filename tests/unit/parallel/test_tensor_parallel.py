"""One model in two and in four processes (gloo, on the CPU) against one. Each world is started once, and looked at here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from ranks import STEPS, alone, work
from torch.distributed.device_mesh import DeviceMesh
from torch.multiprocessing import start_processes

import idefics
from idefics.config import Config, Idefics1Config, Idefics2Config
from idefics.config.presets import preset
from idefics.errors import OptionError
from idefics.parallel import launch
from idefics.parallel.load import load_placed
from idefics.parallel.tensor_parallel import parallelize, plan_of
from idefics.weights.families import build_on_meta
from idefics.weights.init import initialize
from idefics.weights.save import save_model

# A row-wise product adds the same numbers in another order; each of its outputs may move by a few units in the last place
# (6e-8 of its size). There are two per layer, some ten in these models, and they add up: two and four processes were seen to
# differ by 8e-7 of the largest logit. Each of the mutations below moves logits by more than the largest of them.
ROUNDING = 1e-5

TEXT = dict(vocab_size=37, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=8)
SECOND = Idefics2Config.from_dict(
    {
        "vision_config": dict(
            hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
        ),
        "perceiver_config": dict(
            resampler_n_latents=3, resampler_depth=1, resampler_n_heads=3, resampler_head_dim=6, num_key_value_heads=1
        ),
        "text_config": {**TEXT, "num_key_value_heads": 4, "sliding_window": 8},
        "image_token_id": 5,
    }
)
FIRST = Idefics1Config.from_dict(
    {
        "model_type": "idefics", **TEXT, "use_resampler": True, "qk_layer_norms": True, "additional_vocab_size": 3,
        "cross_layer_interval": 2, "alpha_type": "vector", "alpha_initializer": "ones",
        "vision_config": dict(
            embed_dim=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
        ),
        "perceiver_config": dict(
            use_resampler=True, resampler_n_latents=3, resampler_depth=1, resampler_n_heads=3, resampler_head_dim=6
        ),
    }
)  # fmt: skip
LARGE = replace(
    SECOND,
    text_config=replace(
        SECOND.text_config, hidden_size=512, head_dim=64, intermediate_size=2048, num_hidden_layers=4, vocab_size=4001
    ),
    perceiver_config=replace(SECOND.perceiver_config, hidden_size=512),
    dtype="bfloat16",
)
# Seconds of work, but processes that wait for each other suffer more than others where a machine is busy.
pytestmark = pytest.mark.timeout(1800)

MODELS = ("idefics2", "tied", "idefics")
WORLDS = (2, 4)


def _save(config: Config, folder: Path, *, random: bool = True) -> None:
    model = build_on_meta(config).to_empty(device="cpu").to(getattr(torch, config.dtype))
    if config.tie_word_embeddings:
        model.get_submodule("lm_head").weight = model.get_parameter("text_model.embed_tokens.weight")
    if random:
        initialize(model, seed=0, std=0.3)
    else:
        torch._foreach_zero_([p.detach() for p in model.parameters()])
    save_model(model, folder, max_shard_bytes=2**23)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fakes import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("divided")
    _save(SECOND, folder / "idefics2")
    _save(replace(SECOND, tie_word_embeddings=True), folder / "tied")
    _save(FIRST, folder / "idefics")
    _save(LARGE, folder / "large", random=False)
    write_tiny_checkpoint(folder / "checkpoint", std=0.2)
    Image.effect_noise((60, 90), 60).convert("RGB").save(folder / "plain.png")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", params=WORLDS, ids=["two", "four"])
def reports(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    """What every process of a world found, by rank."""
    n = request.param
    start_processes(work, (n, free_port(), folder), nprocs=n, start_method="spawn")
    return [torch.load(folder / f"{n}-{rank}.pt", weights_only=False) for rank in range(n)]


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: alone(folder / name) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_tokens_are_those_of_one_process(
    reports: list[dict[str, Any]], expected: dict[str, dict[str, Any]], name: str
) -> None:
    whole = expected[name]
    assert whole["logits"].shape == (1 + STEPS, 3, 37 + 3 * (name == "idefics"))
    for report in reports:
        found = report[name]
        assert found["plain"]
        difference = (found["logits"] - whole["logits"]).abs().max() / whole["logits"].abs().max()
        assert difference < ROUNDING, difference
        assert found["tokens"] == whole["tokens"]
        assert found["beams"] == whole["beams"]


@pytest.mark.parametrize("name", MODELS)
def test_all_processes_hold_the_same_bits_and_draw_the_same_tokens(reports: list[dict[str, Any]], name: str) -> None:
    first = reports[0][name]
    for report in reports[1:]:
        assert torch.equal(report[name]["logits"], first["logits"])
        assert report[name]["drawn"] == first["drawn"]
        assert report[name]["seeded"] == first["seeded"]
    once, again = first["drawn"]
    assert once != again, "every call draws anew"
    assert once[0::2] != once[1::2], "so does every candidate"
    seeds = [report["seeds"] for report in reports]
    assert all(pair == seeds[0] for pair in seeds)
    assert seeds[0][0] != seeds[0][1]
    for report in reports:
        first, again, other = report["seeds of a whole model"]
        assert first == again != other


@pytest.mark.parametrize("name", MODELS)
def test_each_process_holds_its_part_under_the_same_names(reports: list[dict[str, Any]], folder: Path, name: str) -> None:
    n = len(reports)
    model = idefics.weights.load.load_model(folder / name)
    shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    divided = {f"{module}.weight" for module in plan_of(model)}
    assert ("lm_head.weight" in divided) is (name != "tied")
    for report in reports:
        assert report[name]["whole"] == shapes
    for key, shape in shapes.items():
        held = [report[name]["held"][key] for report in reports]
        if key not in divided:
            assert held == [shape] * n, key
            continue
        along = 1 if key.endswith(("o_proj.weight", "down_proj.weight")) else 0
        assert sum(part[along] for part in held) == shape[along], key
        assert max(part[along] for part in held) == -(-shape[along] // n), key
        assert {part[1 - along] for part in held} == {shape[1 - along]}, key


@pytest.mark.parametrize("wrong", ["not summed", "wrong heads", "wrong rows of the head"])
def test_what_is_divided_wrongly_is_seen(
    reports: list[dict[str, Any]], expected: dict[str, dict[str, Any]], wrong: str
) -> None:
    if len(reports) > 2:
        pytest.skip("mutations are made in two processes only")
    whole = expected["idefics2"]["logits"]
    for report in reports:
        found = report["mutations"][wrong]
        assert (found - whole).abs().max() / whole.abs().max() > 1000 * ROUNDING
        assert "must match the existing size" in report["mutations"]["a cache for all heads"]
    assert len({str(report["mutations"]["seeds of one's own"]) for report in reports}) == 2


def test_the_cache_has_room_for_the_heads_that_are_here_and_no_more(reports: list[dict[str, Any]]) -> None:
    n = len(reports)
    for report in reports:
        assert report["idefics2"]["cache"] == {(3, 4 // n, 9 + STEPS, 4)}
        assert report["idefics"]["cache"] == {(3, 8 // n, 9 + STEPS, 4)}


def test_a_process_takes_memory_for_its_part_only(reports: list[dict[str, Any]]) -> None:
    n = len(reports)
    sizes = {name: 4 * parameter.numel() for name, parameter in build_on_meta(LARGE).named_parameters()}
    total, largest = sum(sizes.values()), max(sizes.values())
    whole = sum(size for name, size in sizes.items() if name.rpartition(".")[0] not in plan_of(build_on_meta(LARGE)))
    for report in reports:
        memory = report["memory"]
        assert memory["kept"] <= whole + (total - whole) / n + 4 * LARGE.text_config.hidden_size
        print(f"{n} processes: kept {memory['kept']:,}, peak {memory['peak']:,} of {total:,}, largest tensor {largest:,}")
        # A few megabytes are of torch's and the allocator's own.
        assert memory["peak"] < memory["kept"] + largest + 6_000_000


def test_mistakes_are_told_by_the_numbers(reports: list[dict[str, Any]]) -> None:
    n = len(reports)
    for report in reports:
        assert report["another number"] == (
            f"tensor_parallel = {n + 1}, but torchrun started {n} process(es); give it --nproc-per-node {n + 1}, or ask for "
            f"tensor_parallel = {n}"
        )
        assert f"device_map=auto puts layers one after the other and tensor_parallel={n} divides" in report["with a map"]
        assert "device = cuda:1 and tensor_parallel contradict each other" in report["a GPU by number"]
        assert report["left"]


def test_only_the_first_process_of_a_command_speaks(reports: list[dict[str, Any]], folder: Path) -> None:
    if len(reports) == 2:
        answer = idefics.load(folder / "checkpoint").generate("Hm?", str(folder / "plain.png"), max_new_tokens=4)
        assert [report["answer"] for report in reports] == [(0, answer + "\n", ""), (0, "", "")]
    for mistake in ("mistake", "stdin"):
        first, *others = (report[mistake] for report in reports)
        assert (first[0], first[1], first[2].count("\n")) == (1, "", 1)
        assert others == [(1, "", "")] * len(others)
    assert "nowhere.png" in reports[0]["mistake"][2]
    assert "stdin cannot be read by several processes" in reports[0]["stdin"][2]


def test_torchrun_starts_the_command_line(folder: Path) -> None:
    answer = idefics.load(folder / "checkpoint").generate("Hm?", max_new_tokens=3)
    words = ["generate", "Hm?", "-m", str(folder / "checkpoint"), "--max-new-tokens", "3", "--device", "cpu"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "idefics", *words, "--tensor-parallel", "2"],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, answer + "\n", "")


def _placed(folder: Path, n: int) -> Any:
    return load_placed(folder, dtype=None, device="cpu", device_map=None, backend="sdpa", progress=None, tensor_parallel=n)


def test_alone_there_is_nothing_to_divide(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OptionError, match="torchrun --nproc-per-node 2 -m idefics generate --tensor-parallel 2"):
        _placed(folder / "tied", 2)
    with pytest.raises(OptionError, match="tensor_parallel = 0; a model is divided over 1 process or more"):
        _placed(folder / "tied", 0)
    model = _placed(folder / "tied", 1)
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(OptionError, match="tensor_parallel = 1, but torchrun started 2"):
        _placed(folder / "tied", 1)


def test_a_process_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="no GPU for process 2 of this machine, which has 1; start 1 or fewer"):
        launch.init(2, device="cuda")


@pytest.mark.parametrize(
    ("config", "n", "message"),
    [
        (preset("idefics2-8b"), 3, "= 3 does not divide this model's 32 attention heads; 1, 2 would"),
        (preset("idefics2-8b"), 16, "= 16 does not divide this model's 8 key-value heads; 1, 2, 4, 8 would"),
        (preset("idefics-80b"), 32 * 7, "= 224 does not divide this model's 64 attention heads"),
        (
            replace(SECOND, text_config=replace(SECOND.text_config, intermediate_size=50)),
            4,
            "= 4 does not divide this model's 50 inner channels of connector.modality_projection; 1, 2 would",
        ),
    ],
)
def test_what_cannot_be_dealt_out_evenly_is_refused(config: Config, n: int, message: str) -> None:
    mesh = cast(DeviceMesh, SimpleNamespace(size=lambda: n))
    with pytest.raises(OptionError, match=message):
        parallelize(build_on_meta(config), mesh)


@pytest.mark.parametrize(("name", "share"), [("idefics2-8b", 0.92), ("idefics-9b", 0.90), ("idefics-80b", 0.98)])
def test_nearly_all_of_a_published_model_is_divided(name: str, share: float) -> None:
    model = build_on_meta(preset(name))
    plan = plan_of(model)
    counts = {key: parameter.numel() for key, parameter in model.named_parameters()}
    assert sum(count for key, count in counts.items() if key.rpartition(".")[0] in plan) > share * sum(counts.values())


@pytest.mark.parametrize("n", ["2", 2.0, 0, -1])
def test_numbers_of_processes_that_are_none(tiny_checkpoint: Path, n: Any) -> None:
    with pytest.raises(OptionError, match="divided over 1 process or more"):
        idefics.load(tiny_checkpoint, tensor_parallel=n)
