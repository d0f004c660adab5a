"""Reading published state dicts: plain `.pt` files, and the quantized ones of systems.md 1-3.

Files are unpickled weights-only, so a hostile pickle cannot run, and decompression is bounded by
the file's size.
"""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
import zstandard
from torch import Tensor

from niblick.errors import ArtifactError

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
)
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
    content = _mapping(f"{str(path)!r}", _unpickle(path, _inflate(path, _read(path))))
    mixed = set(content) == {"w", "m"}
    if "quantized" in content and "scales" in content:
        found = _rows(content)
    elif mixed:
        found = _mixed(content)
    else:
        found = dict(content)
    tensors = {_plain_name(name): _floats(name, tensor) for name, tensor in found.items()}
    return StateDict(tensors, not mixed)


def _mapping(what: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{what} holds a {type(value).__name__}, not a state dict")
    longest = max((len(str(name)) for name in value), default=0)
    if longest > _LONGEST_NAME:
        raise ArtifactError(f"a tensor's name has {longest} characters; at most {_LONGEST_NAME}")
    return value


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


def _unpickle(path: Path, raw: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0][:160]
        raise ArtifactError(f"{str(path)!r} is refused by weights-only loading: {reason}") from None
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [""])[0][:160]
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
        raise ArtifactError(
            f"scales {tuple(scale.shape)} do not fit the rows of {name!r} {tuple(codes.shape)}"
        )
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


def _plain_name(name: Any) -> str:
    """The name without what torch.compile and data parallelism put in front."""
    plain = str(name)
    for prefix in _WRAPPERS:
        plain = plain.removeprefix(prefix)
    return plain
