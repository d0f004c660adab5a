"""Reading published state dicts: plain `.pt` files, and the int8, int6 and mixed dictionaries.

Files are unpickled weights-only, so a hostile pickle cannot run. Memory is bounded by the file's
size: decompression, what the pickle may build, and tensors that claim more than they store.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor

from niblick.errors import ArtifactError
from niblick.limits import cut, quoted

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_FREE_BYTES, _LARGEST, _LONGEST_NAME = 1 << 26, 1 << 30, 512
# What torch's reader raises on files that are no state dict.
_UNREADABLE = (
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OSError,
    EOFError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_BUFFER = re.compile(rb"c(builtins|__builtin__)\nbytearray\n")  # of any length, filled at once
_WRAPPERS = ("_orig_mod.", "module.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of a published file, dequantized, by name; `ArtifactError` for anything
    else.
    """
    raw = _inflate(path, _read(path))
    content = _table(_unpickle(path, raw), "the file")
    left = _FREE_BYTES + 4 * len(raw)  # int8 codes become float32
    for tensor in _tensors(content):
        left -= 4 * _dense(tensor).numel()
    if left < 0:
        raise ArtifactError(f"{str(path)!r} holds more numbers than its {len(raw):,} bytes can")
    if "quantized" in content and "scales" in content:
        found = _rows(content)
    elif set(content) == {"w", "m"}:
        found = _mixed(content)
    else:
        found = dict(content)
    return {_plain_name(name): _floats(name, tensor) for name, tensor in found.items()}


def _table(value: Any, what: str) -> dict[str, Any]:
    """A mapping whose keys are names; `ArtifactError` for anything else."""
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{what} holds a {type(value).__name__}, not a state dict")
    for name in value:
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            shown = quoted(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise ArtifactError(f"{what} holds {shown} where the name of a tensor is expected")
    return dict(value)


def _tensors(content: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors of a state dict and of the dictionaries in it."""
    for value in content.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from (inner for inner in value.values() if isinstance(inner, Tensor))


def _dense(tensor: Tensor) -> Tensor:
    """`tensor`, refused unless it is a plain one that stores every number it claims to have."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.is_nested:
        raise ArtifactError(
            f"a tensor of the state dict is {tensor.layout} on {tensor.device.type}"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ArtifactError(
            f"a tensor of shape {cut(tuple(tensor.shape), 60)} stores fewer numbers than it claims"
        )
    return tensor


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _inflate(path: Path, data: bytes) -> bytes:
    """Undo zlib or zstd; other content is taken as it is."""
    limit = min(_FREE_BYTES + 64 * len(data), _LARGEST)
    try:
        if data.startswith(_ZSTD_MAGIC):
            with zstandard.ZstdDecompressor(max_window_size=1 << 30).stream_reader(data) as reader:
                raw = reader.read(limit + 1)
        elif data[:1] == b"\x78" and int.from_bytes(data[:2], "big") % 31 == 0:
            raw = zlib.decompressobj().decompress(data, limit + 1)
        else:
            return data
    except (zlib.error, zstandard.ZstdError) as error:
        raise ArtifactError(f"{str(path)!r} cannot be decompressed: {error}") from None
    if len(raw) > limit:
        raise ArtifactError(
            f"{str(path)!r} expands from {len(data):,} to more than {limit:,} bytes"
        )
    return raw


def _check_pickle(path: Path, raw: bytes) -> None:
    """Refuse what would take memory while it is loaded: zip bombs, and buffers of any length."""
    pickles = [raw]
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _FREE_BYTES + len(raw):
                raise ArtifactError(f"{str(path)!r} expands to more than a state dict does")
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    if any(map(_BUFFER.search, pickles)):
        raise ArtifactError(f"{str(path)!r} is refused: it builds a bytearray")


def _unpickle(path: Path, raw: bytes) -> Any:
    try:
        _check_pickle(path, raw)
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = cut(str(error).partition("\n")[0], 120)
        raise ArtifactError(f"{str(path)!r} is refused by weights-only loading: {reason}") from None
    except _UNREADABLE as error:
        reason = cut(str(error).partition("\n")[0], 120)
        raise ArtifactError(
            f"{str(path)!r} is no state dict that torch can read: {reason}"
        ) from None


def _rows(content: Mapping[str, Any]) -> dict[str, Any]:
    """Sections 1 and 2: codes times the scale of their row, and float tensors passed through."""
    found = _table(content.get("passthrough") or {}, "'passthrough'")
    scales = _table(content["scales"], "'scales'")
    for name, codes in _table(content["quantized"], "'quantized'").items():
        found[name] = _dequantize(name, codes, scales.get(name))
    return found


def _mixed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Section 3: `m` says of each name whether `w` holds the tensor, or its codes and scale."""
    weights, found = _table(content["w"], "'w'"), dict[str, Any]()
    for name, kind in _table(content["m"], "'m'").items():
        if isinstance(kind, Mapping):
            found[name] = _dequantize(name, weights.get(f"{name}.q"), weights.get(f"{name}.scale"))
        else:
            found[name] = weights.get(name)
    return found


def _dequantize(name: str, codes: Any, scale: Any) -> Tensor:
    if not isinstance(codes, Tensor) or not isinstance(scale, Tensor):
        raise ArtifactError(f"quantized tensor {quoted(name)} lacks its codes or its scale")
    wide = scale.float()
    if wide.dim() == 0:
        return codes.float() * wide
    if wide.dim() != 1 or codes.dim() < 1 or wide.shape[0] != codes.shape[0]:
        raise ArtifactError(
            f"scales {cut(tuple(scale.shape), 40)} do not fit the rows of {quoted(name)}"
        )
    return codes.float() * wide.view(-1, *[1] * (codes.dim() - 1))


def _floats(name: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ArtifactError(f"entry {quoted(name)} is {kind}, not a tensor of floats")
    return tensor.detach().float().contiguous()


def _plain_name(name: str) -> str:
    """The name without what torch.compile and data parallelism put in front."""
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name
