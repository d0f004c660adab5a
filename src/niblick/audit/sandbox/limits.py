"""What a sandboxed run may use; anything over ends it, and the outcome names the limit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one run: seconds, bytes and counts.

    `cpu_seconds` and `address_bytes` hold for one process, `memory_bytes` for the resident memory
    of all together (twice `cpu_seconds` is what they may burn together). `output_bytes` bounds
    standard output and error, `result_bytes` the report.
    """

    cpu_seconds: int = 120
    wall_seconds: float = 180.0
    memory_bytes: int = 4_000_000_000
    address_bytes: int = 16_000_000_000
    file_bytes: int = 256_000_000
    scratch_bytes: int = 512_000_000
    processes: int = 64
    output_bytes: int = 16_000_000
    result_bytes: int = 4_000_000
