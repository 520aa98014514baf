from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, logits

from idefics.errors import CheckpointError, CheckpointNotFound, ConfigError, OptionError, OutOfMemory, TensorMismatch
from idefics.inputs import ModelInputs
from idefics.machine import memory
from idefics.machine.memory import explain_out_of_memory, free_bytes
from idefics.weights import filling
from idefics.weights.division import Whole
from idefics.weights.families import build_on_meta, family_of
from idefics.weights.load import load_config, load_model
from idefics.weights.match import TensorsDiffer
from idefics.weights.placement import Placement
from idefics.weights.save import save_model
from idefics.weights.shards import Shards

Make = Callable[..., Path]
HERE = Path(__file__).parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _edit(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_what_is_saved_is_loaded(checkpoint: Make, dtype: torch.dtype, max_shard_bytes: int) -> None:
    model = load_model(checkpoint(dtype=dtype, max_shard_bytes=max_shard_bytes))
    assert model.config.dtype == str(dtype).removeprefix("torch.")
    assert not model.training
    assert torch.equal(logits(model), logits(build(dtype=dtype)))
    for (name, ours), (_, theirs) in zip(model.named_parameters(), build(dtype=dtype).named_parameters(), strict=True):
        assert ours.dtype == dtype
        assert ours.requires_grad
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_converted(checkpoint: Make, stored: torch.dtype, dtype: torch.dtype) -> None:
    model = load_model(checkpoint(dtype=stored), dtype=dtype)
    expected = build(dtype=stored).to(dtype)
    assert model.config.dtype == str(dtype).removeprefix("torch.")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_files_of_several_dtypes_become_a_model_of_one(checkpoint: Make) -> None:
    folder = checkpoint(dtype=torch.bfloat16)

    def widen_norms(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.float() for name, tensor in tensors.items() if tensor.ndim == 1})

    _edit(folder, widen_norms)
    model = load_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(build(dtype=torch.bfloat16)))


def test_the_published_checkpoint_of_4_40_gives_its_logits() -> None:
    # Written, sharded, by the release that Idefics2 was published with; see oracle_4_40/make.py.
    model = load_model(HERE / "oracle_4_40" / "checkpoint")
    expected = load_file(HERE / "oracle_4_40" / "expected.safetensors")
    ids = expected["input_ids"]
    with torch.no_grad():
        inputs = ModelInputs(
            input_ids_BT=ids, attention_mask_BT=torch.ones_like(ids), images_CHW=(expected["pixels"],), images_per_row=(1,)
        )
        ours = model.logits(model(ids, positions_BT=torch.arange(ids.shape[1])[None], seen=model.see(inputs)))
    torch.testing.assert_close(ours, expected["logits"], atol=1e-4, rtol=1e-5)


@linux
def test_parameters_lie_in_the_mapped_file(checkpoint: Make) -> None:
    folder = checkpoint()
    model = load_model(folder)
    maps = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder / "model.safetensors") in line
    ]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    for name, parameter in model.named_parameters():
        assert any(low <= parameter.data_ptr() < high for low, high in ranges), name
    # Seen to fail: a converted copy does not lie there.
    copied = load_model(folder, dtype=torch.float16)
    assert not any(low <= p.data_ptr() < high for low, high in ranges for p in copied.parameters())


def test_training_a_mapped_model_leaves_the_file_alone(checkpoint: Make) -> None:
    folder = checkpoint()
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in load_model(folder).parameters():
            parameter.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@linux
def test_memory_grows_by_the_weights_once_or_not_at_all(tmp_path: Path) -> None:
    model = build()
    model.text_model.embed_tokens.weight = torch.nn.Parameter(torch.ones(200_000, 16))  # 12.8 MB each
    model.lm_head.weight = torch.nn.Parameter(torch.ones(200_000, 16))
    save_model(model, tmp_path)
    _edit_config(tmp_path, text_config={**model.config.to_dict()["text_config"], "vocab_size": 200_000})
    load_model(tmp_path)  # once before: what the first call imports and allocates is not the weights
    peak, before = 0, _anonymous_bytes()

    def watch(_done: int, _total: int) -> None:
        nonlocal peak
        peak = max(peak, _anonymous_bytes() - before)

    mapped = load_model(tmp_path, progress=watch)
    assert peak < 6e6
    peak, before = 0, _anonymous_bytes()
    converted = load_model(tmp_path, dtype=torch.bfloat16, progress=watch)
    assert peak < 12.8e6 + 6e6
    del mapped, converted, model


def test_progress_counts_bytes(checkpoint: Make) -> None:
    seen: list[tuple[int, int]] = []
    model = load_model(checkpoint(max_shard_bytes=20_000), progress=lambda done, total: seen.append((done, total)))
    total = sum(p.nbytes for p in model.parameters())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_tied_head_is_one_parameter(checkpoint: Make) -> None:
    folder = checkpoint(tied=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_model(folder)
    assert model.lm_head.weight is model.text_model.embed_tokens.weight
    assert torch.equal(logits(model), logits(build(tied=True)))


def test_tied_head_may_be_in_the_file_if_it_is_the_same(checkpoint: Make) -> None:
    folder = checkpoint(tied=True)
    _edit(folder, lambda t: t.update({"lm_head.weight": t["model.text_model.embed_tokens.weight"].clone()}))
    assert torch.equal(logits(load_model(folder)), logits(build(tied=True)))
    _edit(folder, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(
        CheckpointError, match=r"ties lm_head\.weight to model\.text_model\.embed_tokens\.weight .*two different"
    ):
        load_model(folder)


def test_a_tied_head_in_the_file_takes_no_memory(checkpoint: Make) -> None:
    """In another dtype both are copied, of which one is kept: what is asked for in advance must not be both."""
    folder = checkpoint(tied=True)
    without = _memory(folder)
    _edit(folder, lambda t: t.update({"lm_head.weight": t["model.text_model.embed_tokens.weight"].clone()}))
    assert _memory(folder) == without > 0


def _memory(folder: Path) -> int:
    config = load_config(folder)
    planned = filling.plan_filling(build_on_meta(config), Shards(folder), family_of(config).table)
    return planned.memory(torch.bfloat16, Placement("cpu"), Whole())


def test_untied_head_must_be_there(checkpoint: Make) -> None:
    folder = checkpoint(tied=True)
    _edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(TensorMismatch, match=r"1 missing: lm_head\.weight$"):
        load_model(folder)


def test_buffers_of_older_files_are_passed_over(checkpoint: Make) -> None:
    folder = checkpoint()
    _edit(folder, lambda t: t.update({"model.text_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert torch.equal(logits(load_model(folder)), logits(build()))


def test_every_missing_extra_and_misshapen_tensor_is_named(checkpoint: Make) -> None:
    folder = checkpoint()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.text_model.norm.weight"], tensors["model.connector.perceiver_resampler.latents"]
        tensors["model.text_model.layers.7.input_layernorm.weight"] = torch.ones(16)
        tensors["surprise"] = torch.ones(1)
        tensors["lm_head.weight"] = torch.ones(41, 16)
        tensors["model.vision_model.post_layernorm.bias"] = torch.ones(8, dtype=torch.int8)

    _edit(folder, spoil)
    with pytest.raises(TensorsDiffer) as caught:
        load_model(folder)
    error = caught.value
    assert set(error.missing) == {"model.text_model.norm.weight", "model.connector.perceiver_resampler.latents"}
    assert set(error.extra) == {"model.text_model.layers.7.input_layernorm.weight", "surprise"}
    assert error.misshapen == {"lm_head.weight": ((41, 16), (40, 16))}
    assert error.unusable == {"model.vision_model.post_layernorm.bias": "I8"}
    message = str(error)
    assert "\n" not in message
    assert "2 missing: model.connector.perceiver_resampler.latents; model.text_model.norm.weight |" in message
    assert "2 extra: model.text_model.layers.7.input_layernorm.weight; surprise |" in message
    assert "1 of the wrong shape: lm_head.weight is (41, 16), due (40, 16) |" in message
    assert (
        "1 of a dtype that is none of F32, F16, BF16, or not that of its buffer: model.vision_model.post_layernorm.bias (I8)"
        in message
    )


def test_many_differences_are_counted_and_all_kept(checkpoint: Make) -> None:
    folder = checkpoint()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({f"base.{name}": tensor.clone() for name, tensor in tensors.items()}, path)
    with pytest.raises(TensorsDiffer) as caught:
        load_model(folder)
    assert len(caught.value.missing) == len(caught.value.extra) == len(tensors)
    assert str(caught.value).count(";") == 2 * 9
    assert str(caught.value).count(f"and {len(tensors) - 10} more") == 2
    assert f" | {len(tensors)} extra: base.lm_head.weight; " in str(caught.value)


def test_config_of_another_size_is_a_mismatch(checkpoint: Make) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    _edit_config(folder, text_config={**config["text_config"], "num_hidden_layers": 4})
    with pytest.raises(TensorMismatch, match=r"9 missing: model\.text_model\.layers\.3"):
        load_model(folder)
    _edit_config(folder, text_config={**config["text_config"], "intermediate_size": 32})
    with pytest.raises(
        TensorsDiffer, match=r": 12 of the wrong shape: model\.connector\.[\w.]+ is \(16, 24\), due \(16, 32\); "
    ) as caught:
        load_model(folder)
    assert len(caught.value.misshapen) == 3 * 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llava"}, "model_type = 'llava' is no model of this package; it has 'idefics2'"),
        ({"model_type": None}, "model_type = None"),
        ({"architectures": ["Idefics2Model"]}, "only Idefics2ForConditionalGeneration is supported"),
    ],
)
def test_configs_that_are_refused(checkpoint: Make, values: dict[str, object], message: str) -> None:
    folder = checkpoint()
    _edit_config(folder, **values)
    with pytest.raises(ConfigError, match=message):
        load_config(folder)


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"config\.json does not exist"):
        load_model(tmp_path)


def test_dtype_that_no_model_computes_in(checkpoint: Make) -> None:
    with pytest.raises(ConfigError, match=r"dtype = 'int8' is not one of float32, float16, bfloat16"):
        load_model(checkpoint(), dtype=torch.int8)


def test_device_map(checkpoint: Make) -> None:
    model = load_model(checkpoint(), device={"text_model.layers.2": "meta", "lm_head": torch.device("meta"), "": "cpu"})
    assert {n for n, p in model.named_parameters() if p.is_meta} == {
        n for n, _ in model.named_parameters() if n.startswith(("text_model.layers.2.", "lm_head"))
    }


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ({"text_model": "cpu", "lm_head": "cpu", "connector": "cpu"}, "does not say where vision_model.* goes"),
        ({"": "cpu", "text_model.layer.1": "cpu"}, "names parts that the model does not have: text_model.layer.1"),
        ("gpu", "device 'gpu' is none that torch knows: "),
        ({"": "cuda:77"}, "device 'cuda:77' cannot be used on this machine: "),
    ],
)
def test_devices_that_do_not_fit(checkpoint: Make, device: str | dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load_model(checkpoint(), device=device)


def test_too_little_memory_is_refused_before_it_is_used(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint()
    monkeypatch.setattr(memory, "free_bytes", lambda _device, **_: 10_000)
    load_model(folder)  # mapped: asks for nothing
    with pytest.raises(OutOfMemory, match=r"as bfloat16 needs [\d.]+ KiB of memory, 9\.8 KiB are free; use a 16-bit dtype"):
        load_model(folder, dtype=torch.bfloat16)
    needed = 2 * sum(p.numel() for p in build().parameters())
    monkeypatch.setattr(memory, "free_bytes", lambda _device, **_: needed)
    load_model(folder, dtype=torch.bfloat16)
    monkeypatch.setattr(memory, "free_bytes", lambda _device, **_: needed - 1)
    with pytest.raises(OutOfMemory):
        load_model(folder, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"
        ),
        RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)"),
    ],
)
def test_every_kind_of_out_of_memory_is_explained(checkpoint: Make, monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    folder = checkpoint()

    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(filling, "_put", fail)
    with pytest.raises(
        OutOfMemory, match=r"out of memory while loading .* as float32 \([\d.]+ KiB of files\).*use a 16-bit dtype"
    ) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_other_runtime_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match=r"^shape$"), explain_out_of_memory("x", reduce="y"):
        raise RuntimeError("shape")


@linux
def test_free_bytes_of_this_machine() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or 0 < free < 2**50
    assert free_bytes(torch.device("meta")) is None


@linux
def test_free_bytes_where_the_kernel_hides_its_account(tmp_path: Path) -> None:
    """As systemd's ProcSubset=pid does: a cache that nothing bounds would be made as large as all answers could need."""
    pages = memory._available(tmp_path / "missing", swap=False)
    assert pages is not None
    assert 0 < pages < 2**50
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 3 kB\nSwapFree: 2 kB\n")
    assert memory._available(tmp_path / "meminfo", swap=False) == 3 * 1024
    assert memory._available(tmp_path / "meminfo", swap=True) == 5 * 1024


def test_keys_nobody_knows_are_refused_or_taken_with_a_warning(checkpoint: Make) -> None:
    folder = checkpoint()
    _edit_config(folder, some_new_key=None)
    assert load_model(folder).config.unknown == {}
    _edit_config(folder, attention_sinks=4)
    with pytest.raises(ConfigError, match=r"attention_sinks = 4; .*--allow-unknown-config"):
        load_model(folder)
    with pytest.warns(UserWarning, match="as if its config.json did not say config.attention_sinks = 4"):
        assert load_model(folder, allow_unknown=True).config.unknown == {"config.attention_sinks": 4}
