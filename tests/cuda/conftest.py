"""The tests of a CUDA device, on a pretended one where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pretended_card import pretended

THERE = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    if THERE:
        yield
        return
    with pretended():
        yield
