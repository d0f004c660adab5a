"""The byte ledger of an artifact: where every byte of the file went, by part and by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from niblick.codecs.base import TensorRow


@dataclass(frozen=True)
class Ledger:
    """Bytes by part, which sum to the size of the file exactly, and the payload's by tensor."""

    parts: Mapping[str, int]
    tensors: Mapping[str, TensorRow]

    @property
    def total(self) -> int:
        """Size of the file in bytes."""
        return sum(self.parts.values())

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(row.parameters for row in self.tensors.values())

    def largest(self, count: int = 3) -> str:
        """The `count` largest tensors in words, for an error message."""
        order = sorted(self.tensors.items(), key=lambda item: (-item[1].bytes, item[0]))
        return ", ".join(f"{name} {row.bytes:,} B" for name, row in order[:count])

    def to_json(self) -> dict[str, Any]:
        """Plain values: total, bits per parameter all-in, parts, and a row per tensor."""
        rows = {}
        for name, row in self.tensors.items():
            rows[name] = {
                "bytes": row.bytes,
                "parameters": row.parameters,
                "bits_per_parameter": round(row.bits_per_parameter, 4),
            }
            if row.entropy_bits is not None:
                rows[name]["entropy_bits"] = round(row.entropy_bits, 1)
        each = 8 * self.total / max(self.parameters, 1)
        return {
            "total": self.total,
            "parameters": self.parameters,
            "bits_per_parameter": round(each, 4),
            "parts": dict(self.parts),
            "tensors": rows,
        }
