"""Bounds for everything that a file declares, and how an error quotes what a file says.

Guarantees: what passes these bounds can be multiplied, planned and allocated without overflow, and
an error line stays short and on one line whatever the file holds.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_LINE = 200  # characters of an error beside the paths that the user gave
MAX_QUOTED = 60
MAX_TEXT = 4096  # characters of a name, a path or a description
MAX_RECIPE_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 26

MAX_REAL = 1e6  # gains, scales, slopes, rates: far beyond use, far below overflow
MAX_ROPE_BASE = 1e12
MAX_COUNT = 2**31 - 1  # tokens of a batch, steps, bytes of a cap
MAX_AMOUNT = 1e15  # of a duration in any unit
MAX_WIDTH = 1 << 16
MAX_CONTEXT = 1 << 20
MAX_LOOPS = 64
MAX_SEGMENTS = 64
MAX_SEGMENT_LAYERS = 256
MAX_LAYERS = 4096  # virtual layers, loops counted
MAX_THREADS = 1024
MAX_MEMBERS = 16  # of an ensemble
MAX_PARAMETERS = 1 << 32
MAX_STATE_BYTES = 1 << 34  # decode state of one stream in float32


def cut(text: object, limit: int = MAX_LINE) -> str:
    """`text` on one line of at most `limit` characters, the middle left out where it is longer:
    between two words, where there are any.
    """
    words = str(text)
    if len(words) > 8 * limit:
        words = f"{words[: 4 * limit]} {words[-4 * limit :]}"
    line = "".join(c if c.isprintable() else " " for c in " ".join(words.split()))
    if len(line) <= limit:
        return line
    room = (limit - 5) // 3
    head, tail = line[: limit - 5 - room], line[len(line) - room :]
    if line[len(head)] != " " and " " in head[len(head) // 2 :]:
        head = head.rpartition(" ")[0]
    if line[len(line) - room - 1] != " " and " " in tail[: len(tail) // 2]:
        tail = tail.partition(" ")[2]
    return f"{head.rstrip()} ... {tail.lstrip()}"


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """`; did you mean 'name'?` for the name that is most like what was given; empty where none is
    like it.
    """
    from difflib import get_close_matches

    short = given[: 2 * MAX_QUOTED]
    like = get_close_matches(short, names, n=1, cutoff=0.6)
    return f"; did you mean {like[0]!r}?" if like else ""


def quoted(value: object) -> str:
    """`repr(value)` for an error line, cut; `str(value)` is never formed of a huge number."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of about {round(value.bit_length() * 0.30103)} digits"
    if isinstance(value, str) and len(value) > 2 * MAX_QUOTED:
        value = value[:MAX_QUOTED] + value[-MAX_QUOTED:]
    try:
        return cut(repr(value), MAX_QUOTED)
    except (RecursionError, ValueError):  # nested deeply, or holding a huge number
        return f"a {type(value).__name__}"
