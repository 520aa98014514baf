"""Attention over blocks: against attention over the same tokens in one piece, and the kernel against its definition."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from idefics.model.layers import paged_attention as paged
from idefics.model.layers.attention import attention
from idefics.model.layers.shortcut import Shortcut

SHAPES = [
    pytest.param(1, 4, 4, 8, 4, [0], id="one-key"),
    pytest.param(3, 4, 2, 8, 4, [0, 9, 22], id="grouped"),
    pytest.param(2, 6, 2, 24, 16, [15, 16], id="three-heads-share-odd-size"),
    pytest.param(2, 8, 1, 16, 16, [700, 63], id="long"),
    pytest.param(2, 4, 4, 72, 16, [40, 3], id="not-a-power-of-two"),
    pytest.param(2, 8, 2, 96, 16, [300, 17], id="of-a-resampler"),
    pytest.param(1, 32, 8, 128, 16, [90], id="true-size"),
]


def blocks_of(
    rows: int, heads: int, groups: int, size: int, block: int, newest: list[int], dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Arguments of `paged_attention`, and each row's keys and values in one piece (1, G, S, K)."""
    generator = torch.Generator().manual_seed(sum(newest))
    most = max(newest) // block + 1
    count = rows * most + 3
    keys, values = (torch.randn(count, groups, block, size, generator=generator).to(dtype) for _ in range(2))
    table = torch.randperm(count, generator=generator)[: rows * most].view(rows, most)
    whole = []
    for row, last in enumerate(newest):
        whole += [kind[table[row]].transpose(0, 1).flatten(1, 2)[:, : last + 1][None] for kind in (keys, values)]
    given = dict(
        q_RHK=torch.randn(rows, heads, size, generator=generator).to(dtype), keys_NGZK=keys, values_NGZK=values, table_RM=table,
        newest_R=torch.tensor(newest),
    )  # fmt: skip
    return given, whole


def one_by_one(given: dict[str, Any], whole: list[torch.Tensor], window: int | None) -> torch.Tensor:
    """Each row alone, over the keys that it sees."""
    out = []
    for row, q_HK in enumerate(given["q_RHK"]):
        k, v = (kind[:, :, -window:] if window else kind for kind in whole[2 * row : 2 * row + 2])
        out.append(attention(q_HK[None, :, None], k, v, mask_BTS=None, causal=False, backend="reference")[0, :, 0])
    return torch.stack(out)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("rows", "heads", "groups", "size", "block", "newest"), SHAPES)
def test_blocks_are_attended_to_as_if_they_lay_together(
    rows: int, heads: int, groups: int, size: int, block: int, newest: list[int], window: int | None
) -> None:
    given, whole = blocks_of(rows, heads, groups, size, block, newest)
    for backend in ("auto", "sdpa", "reference"):
        found = paged.paged_attention(**given, window=window, backend=backend)  # type: ignore[arg-type]
        torch.testing.assert_close(found, one_by_one(given, whole, window), atol=1e-5, rtol=1e-5)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: the kernel is tested where it is")
@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_the_kernel_in_the_interpreter() -> None:
    """Triton reads the variable when it is first imported, which may have been long ago in this process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "definition or not_read"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout[-3000:]


KINDS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Launches:
    """Takes the place of a kernel: keeps what it is started with, and starts nothing."""

    def __init__(self) -> None:
        self.kept: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < side < 2**16 for side in grid[1:]), "CUDA starts no more in these directions"
        return lambda *given, **constants: self.kept.append((given, constants))


def compiled(kernel: Any, given: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    """The kernel for compute capability 9.0, specialised to these arguments as Triton's launcher does it."""
    from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found]
    from triton.compiler import ASTSource, compile  # type: ignore[import-not-found]

    constants, signature, attributes = dict(constants), {}, {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, given, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = KINDS[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
            continue
        elif value == 1:
            constants[name] = 1
            continue
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
        if (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    signature = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return compile(source, target=GPUTarget("cuda", 90, 32))


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: the kernel is compiled where it is")
@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
@pytest.mark.parametrize(("newest", "window"), [([3, 40], 24), ([5000], None)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "groups", "size"), [(4, 2, 8), (6, 2, 24), (4, 4, 72), (8, 2, 96), (32, 8, 128)])
def test_the_kernel_compiles_without_a_gpu(
    heads: int,
    groups: int,
    size: int,
    dtype: torch.dtype,
    newest: list[int],
    window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With what the launch itself passes: Triton's interpreter takes sizes that its compiler refuses."""
    from idefics.model.layers import paged_kernel as module

    given, _ = blocks_of(len(newest), heads, groups, size, 16, newest, dtype)
    together = torch.cat((torch.zeros(len(newest), 3, dtype=torch.int64), given["table_RM"]), dim=1)
    given["newest_R"], given["table_RM"] = together[:, 1], together[:, 3:]  # as a recorded step has them
    kernels = {name: getattr(module, name) for name in ("_attend", "_join")}
    launches = {name: Launches() for name in kernels}
    for name, launch in launches.items():
        monkeypatch.setattr(module, name, launch)
    module.paged_kernel(**given, window=window)
    assert len(launches["_attend"].kept) == 1
    assert len(launches["_join"].kept) == (max(newest) > 256)
    for name, launch in launches.items():
        for arguments, constants in launch.kept:
            made = compiled(kernels[name], arguments, constants)
            assert made.metadata.shared <= 100 * 1024  # of 227 KiB that an H200's processor has
            if name == "_attend" and dtype != torch.float32:
                assert "mma.sync" in made.asm["ptx"], "no tensor cores"
            if name == "_attend" and dtype != torch.float32 and size == 128:
                assert "v4.b32" in made.asm["ptx"], "keys are not read 16 bytes at a time"


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: the kernel is started where it is")
@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_passes_of_any_shape_share_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that follows the rows' number or length would be a compilation in the middle of somebody's answer."""
    from idefics.model.layers import paged_kernel as module

    launches = {"_attend": Launches(), "_join": Launches()}
    for name, launch in launches.items():
        monkeypatch.setattr(module, name, launch)
    for rows, last in ((1, 300), (3, 300), (1, 5000), (7, 2000), (40, 5000), (64, 9)):
        given, _ = blocks_of(rows, 8, 2, 64, 16, [last] * rows, torch.bfloat16)
        module.paged_kernel(**given, window=4096)
    different = {name: {tuple(sorted(kept[1].items())) for kept in launch.kept} for name, launch in launches.items()}
    assert len(different["_attend"]) == 2, "one for short rows, one for long ones"
    assert len(different["_join"]) <= 5, "one for each power of two"


@pytest.fixture(scope="module")
def kernel() -> Callable[..., torch.Tensor]:
    """The kernel, run by Triton's interpreter."""
    if not INTERPRETED:
        pytest.skip("runs inside test_the_kernel_in_the_interpreter")
    from idefics.model.layers.paged_kernel import paged_kernel

    return paged_kernel


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Triton's interpreter asks numpy for scalars the old way
@pytest.mark.parametrize("window", [None, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter multiplies bfloat16's bits as whole numbers
@pytest.mark.parametrize(("rows", "heads", "groups", "size", "block", "newest"), SHAPES)
def test_the_kernel_is_its_definition(
    kernel: Callable[..., torch.Tensor], rows: int, heads: int, groups: int, size: int, block: int, newest: list[int],
    dtype: torch.dtype, window: int | None,
) -> None:  # fmt: skip
    given, _ = blocks_of(rows, heads, groups, size, block, newest, dtype)
    together = torch.cat((given["newest_R"][:, None], given["table_RM"]), dim=1)
    given["newest_R"], given["table_RM"] = together[:, 0], together[:, 1:]  # apart in memory, as a step has them
    wide = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    expected = paged.gathered_attention(**wide, window=window, backend="reference")
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(kernel(**given, window=window).float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Triton's interpreter asks numpy for scalars the old way
def test_what_no_row_reaches_is_not_read(kernel: Callable[..., torch.Tensor]) -> None:
    given, _ = blocks_of(2, 4, 2, 8, 4, [5, 2])
    expected = kernel(**given, window=None)
    reached = {int(block) for row, last in enumerate((5, 2)) for block in given["table_RM"][row, : last // 4 + 1]}
    for kind in ("keys_NGZK", "values_NGZK"):
        given[kind][[n for n in range(len(given[kind])) if n not in reached]] = float("nan")
    given["table_RM"][1, 1:] = 10**6  # after a row's last block: any number
    assert torch.equal(kernel(**given, window=None), expected)


def test_a_kernel_that_fails_is_given_up_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    way = Shortcut("the way", "the road is taken")
    monkeypatch.setattr(paged, "PAGED", way)

    def broken() -> torch.Tensor:
        raise ValueError("no such instruction\nand a long listing")

    with pytest.warns(UserWarning, match=r"the way failed \(no such instruction\); from now on the road is taken"):
        assert way.attempt(broken) is None
    assert way.attempt(broken) is None  # no second warning: warnings are errors here
    assert not way.open
    full = Shortcut("another way", "")
    with pytest.raises(torch.OutOfMemoryError):
        full.attempt(_full)
    assert full.open


def _full() -> None:
    raise torch.OutOfMemoryError("out of memory")
