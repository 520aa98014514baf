"""What tensors lie in a checkpoint's files, and how to get at them without reading the rest.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors' bytes. The headers are read at once, which
is cheap and shows whether the files are whole; the tensors are mapped into memory when they are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from idefics.config.json_files import parse_json, read_json
from idefics.config.rules import brief
from idefics.errors import CheckpointError, CheckpointNotFound, UnsafeCheckpoint

__all__ = ["DTYPES", "FLOATS", "INDEX", "SINGLE", "Shards", "TensorEntry"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What a model computes in, by safetensors' names."""
DTYPES = {
    **FLOATS, "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""What files may hold."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_HEADER = 100_000_000
"""Bytes; the safetensors library refuses longer headers too."""
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor is.

    Attributes:
        name: as published.
        file: the shard that holds it.
        shape: of the tensor.
        dtype: safetensors' name of it, e.g. `"BF16"`.
        bytes: in the file.
        start: where in the file they begin.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    start: int


class Shards:
    """A checkpoint's tensors, by published name.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and the shards it names.

    Attributes:
        entries: every tensor in the files.

    Raises:
        CheckpointNotFound: no weights, or shards that the index names are missing; all of them are named.
        UnsafeCheckpoint: there are weights, but only as pickle.
        CheckpointError: a file is truncated or corrupt, or lacks tensors that the index says it has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, TensorEntry] = {}
        if (folder / SINGLE).is_file():
            self.entries = _read_header(folder / SINGLE)
        elif (folder / INDEX).is_file():
            self._read_index(folder / INDEX)
        else:
            raise _no_weights(folder)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """These tensors, file by file, on the CPU: views of the mapped files, not copies.

        Raises:
            CheckpointError: a file turns out to be corrupt.
        """
        for file in sorted({self.entries[name].file for name in names}):
            try:
                with safe_open(str(file), framework="pt", device="cpu") as handle:
                    for name in (name for name in names if self.entries[name].file == file):
                        yield name, handle.get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(f"{file} is corrupt: {error}; download it again") from None

    def _read_index(self, path: Path) -> None:
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, Mapping) or not all(_is_file_name(file) for file in weight_map.values()):
            raise CheckpointError(f"{path} has no weight_map from tensor names to file names: {brief(weight_map)}")
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise CheckpointNotFound(
                f"{self.folder} lacks {len(missing)} of its {len(names)} shards: {', '.join(missing)}; download the rest"
            )
        headers = {name: _read_header(self.folder / name) for name in names}
        absent = sorted(name for name, file in weight_map.items() if name not in headers[file])
        if absent:
            shown = ", ".join(f"{name} ({weight_map[name]})" for name in absent[:20])
            more = f" and {len(absent) - 20} more" if len(absent) > 20 else ""
            raise CheckpointError(
                f"{path} names tensors that their shards lack: {shown}{more}; index and shards are not a pair"
            )
        for file, header in headers.items():
            # A tensor that lies in two shards is taken from the one that the index says.
            self.entries.update({name: entry for name, entry in header.items() if weight_map.get(name, file) == file})


def _is_file_name(value: Any) -> bool:
    """A bare name: an index must not lead out of its folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & {"/", "\\"}


def _no_weights(folder: Path) -> CheckpointError:
    if not folder.is_dir():
        return CheckpointNotFound(f"{folder} is not a folder; give the folder that holds config.json and {SINGLE}")
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        return UnsafeCheckpoint(
            f"{folder} has only pickle weights ({', '.join(pickled[:5])}), which run code when loaded, so they are refused; "
            "convert them where you trust them, with safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            f'"{SINGLE}", metadata={{"format": "pt"}}), or take a revision that has safetensors'
        )
    return CheckpointNotFound(f"{folder} has no weights: neither {SINGLE} nor {INDEX}; only safetensors files are read")


def _read_header(path: Path) -> dict[str, TensorEntry]:
    """Reads what a file says of itself and checks it against the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            blob = file.read(length) if length <= min(size - 8, MAX_HEADER) else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(start) == 8 and _LFS.startswith(start):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder")
    if len(start) < 8 or length > size - 8:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: it has {size} bytes, "
            f"its header alone asks for {length + 8 if len(start) == 8 else 'at least 8'}; download it again"
        )
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} is no safetensors file: a header of {length} bytes is over the limit of {MAX_HEADER}")
    try:
        header = parse_json(blob)
        header.pop("__metadata__", None)
        entries = {
            name: TensorEntry(
                name=name,
                file=path,
                shape=tuple(map(int, info["shape"])),
                dtype=str(info["dtype"]),
                bytes=info["data_offsets"][1] - info["data_offsets"][0],
                start=8 + length + info["data_offsets"][0],
            )
            for name, info in header.items()
        }
        if any(entry.bytes < 0 or entry.start < 8 + length for entry in entries.values()):
            raise ValueError("tensors before the first byte")
        promised = 8 + length + max((info["data_offsets"][1] for info in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        raise CheckpointError(
            f"{path} is corrupt: its {length}-byte header is not a table of tensors; download it again"
        ) from None
    if promised != size:
        state = "truncated" if size < promised else "corrupt"
        raise CheckpointError(f"{path} is {state}: it has {size} bytes, its header asks for {promised}; download it again")
    return entries
