"""One position to the right: the shifts behind smear, token shift, k/v shift and the sidecar's
filter.

With document masking, everything before a BOS counts as absent: at a BOS the shifted value is zero.
"""

from __future__ import annotations

from torch import Tensor, cat


def previous(x: Tensor, last: Tensor | None, boundary: Tensor | None) -> Tensor:
    """prev(x) for x (B, T, C): `last` (B, C) stands before the first position, zeros if None.

    `boundary` (B, T) is true where a document begins (None: no masking).
    """
    before = (
        x.new_zeros(x.shape[0], 1, x.shape[2]) if last is None else last.unsqueeze(1).to(x.dtype)
    )
    shifted = cat([before, x[:, :-1]], dim=1)
    return shifted if boundary is None else shifted.masked_fill(boundary.unsqueeze(-1), 0)


def filter_taps(
    x: Tensor, last: Tensor | None, boundary: Tensor | None, width: int
) -> list[Tensor]:
    """x (B, T, C) shifted by width-1, ..., 1, 0 positions, cut off at the newest document boundary.

    `last` (B, width-1, C) holds the positions before the first; zeros if None.
    """
    before = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if last is None else last.to(x.dtype)
    whole, length = cat([before, x], dim=1), x.shape[1]
    taps = [x]
    hidden = None
    for distance in range(1, width):
        tap = whole[:, width - 1 - distance : width - 1 - distance + length]
        if boundary is not None:
            reach = _delayed(boundary, distance - 1)
            hidden = reach if hidden is None else hidden | reach
            tap = tap.masked_fill(hidden.unsqueeze(-1), 0)
        taps.append(tap)
    return taps[::-1]


def last_taps(x: Tensor, last: Tensor | None, boundary: Tensor | None, count: int) -> Tensor:
    """The newest `count` positions (B, count, C) to remember, zeroed where a later one begins a
    document.
    """
    before = x.new_zeros(x.shape[0], count, x.shape[2]) if last is None else last.to(x.dtype)
    kept = cat([before, x], dim=1)[:, -count:]
    if boundary is None:
        return kept
    flags = cat([boundary.new_zeros(x.shape[0], count), boundary], dim=1)[:, -count:]
    later = flags.flip(1).cumsum(1).flip(1) - flags.long()
    return kept.masked_fill((later > 0).unsqueeze(-1), 0)


def _delayed(flags: Tensor, distance: int) -> Tensor:
    """Flags (B, T) shifted right by `distance`, false in front."""
    if distance == 0:
        return flags
    return cat([flags.new_zeros(flags.shape[0], distance), flags], dim=1)[:, : flags.shape[1]]
