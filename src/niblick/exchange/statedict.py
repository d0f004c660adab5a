"""Reading published state dicts: plain `.pt` files, and the quantized ones of systems.md 1-3.

Files are unpickled weights-only, so a hostile pickle cannot run. Memory is bounded by the file's
size: decompression, what the pickle may build, and what its tensors become.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
import zstandard
from torch import Tensor

from niblick.errors import ArtifactError
from niblick.limits import cut, quoted

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_FREE_BYTES, _LARGEST = 1 << 26, 1 << 30
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
_LONGEST_NAME = 100
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class StateDict:
    """Float tensors by name, dequantized, each in the dtype that the published model holds it in.

    `says_dtypes` is false for the mixed dictionary, which leaves its tensors' dtypes to a template
    that the file does not hold.
    """

    tensors: dict[str, Tensor]
    says_dtypes: bool


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a published file; `ArtifactError` for anything else."""
    raw = _inflate(path, _read(path))
    content = _mapping(f"{str(path)!r}", _unpickle(path, raw))
    if sum(4 * tensor.numel() for tensor in _tensors(content)) > _FREE_BYTES + 4 * len(raw):
        raise ArtifactError(f"{str(path)!r} holds more numbers than its {len(raw):,} bytes can")
    mixed = set(content) == {"w", "m"}
    if "quantized" in content and "scales" in content:
        found = _rows(content)
    elif mixed:
        found = _mixed(content)
    else:
        found = dict(content)
    tensors = {_plain_name(name): _floats(name, tensor) for name, tensor in found.items()}
    return StateDict(tensors, not mixed)


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    """`value`, a table whose keys are names; `ArtifactError` for anything else."""
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{what} holds a {type(value).__name__}, not a state dict")
    for name in value:
        if not isinstance(name, str) or len(name) > _LONGEST_NAME or not name.isprintable():
            shown = quoted(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise ArtifactError(f"{what} holds {shown} where the name of a tensor is expected")
    return value


def _tensors(content: Mapping[str, Any]) -> Iterator[Tensor]:
    """The plain tensors of a state dict and of the dictionaries in it."""
    for value in content.values():
        parts = value.values() if isinstance(value, Mapping) else (value,)
        yield from (part for part in parts if _is_plain(part))


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
        with warnings.catch_warnings(action="ignore"):  # of kinds of tensors that are refused
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
    """Sections 1 and 2: codes times their row's scale, and floats, back in the dtypes they had."""
    parts = {
        key: _mapping(repr(key), content.get(key, {}))
        for key in ("quantized", "scales", "dtypes", "passthrough", "passthrough_orig_dtypes")
    }
    found = {
        name: _cast(name, _floats(name, tensor), parts["passthrough_orig_dtypes"].get(name))
        for name, tensor in parts["passthrough"].items()
    }
    for name, codes in parts["quantized"].items():
        dequantized = _dequantize(name, codes, parts["scales"].get(name))
        found[name] = _cast(name, dequantized, parts["dtypes"].get(name))
    return found


def _cast(name: str, tensor: Tensor, dtype: Any) -> Tensor:
    """The tensor in the dtype that the file states for it, or as it is where it states none."""
    if dtype is None:
        return tensor
    known = str(dtype).removeprefix("torch.")
    if known not in _DTYPES:
        raise ArtifactError(f"tensor {name!r} is said to be {known:.40}, not {', '.join(_DTYPES)}")
    return tensor.to(_DTYPES[known])


def _mixed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Section 3: `m` says for each name whether `w` holds the tensor or its codes and scale."""
    found: dict[str, Any] = {}
    weights = _mapping("'w'", content["w"])
    for name, kind in _mapping("'m'", content["m"]).items():
        if isinstance(kind, Mapping):
            found[name] = _dequantize(name, weights.get(f"{name}.q"), weights.get(f"{name}.scale"))
        else:
            found[name] = weights.get(name)
    return found


def _dequantize(name: str, codes: Any, scale: Any) -> Tensor:
    if not _is_plain(codes) or not _is_plain(scale):
        raise ArtifactError(f"quantized tensor {name!r} lacks its codes or its scale")
    wide = scale.float()
    if wide.dim() == 0:
        return codes.float() * wide
    if wide.dim() != 1 or codes.dim() < 1 or wide.shape[0] != codes.shape[0]:
        raise ArtifactError(f"scales {cut(tuple(scale.shape), 40)} do not fit the rows of {name!r}")
    return codes.float() * wide.view(-1, *[1] * (codes.dim() - 1))


def _floats(name: str, tensor: Any) -> Tensor:
    if not _is_plain(tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ArtifactError(f"entry {name!r} is {kind}, not a plain tensor of floats")
    return tensor.detach()


def _is_plain(tensor: Any) -> TypeGuard[Tensor]:
    """A dense tensor whose values are all in the file: not sparse, without data, or expanded."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _plain_name(name: str) -> str:
    """The name without what torch.compile and data parallelism put in front."""
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name
