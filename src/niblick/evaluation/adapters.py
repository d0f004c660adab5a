"""Per-document low-rank adapters: score a piece, learn from it, forget all at the next BOS.

Documents of similar length are adapted side by side, each by its own weights: a document's scores
depend on that document (and, with phases, on documents that were scored before) and never on the
others of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from niblick.evaluation.adaptation import Learner, row_spans
from niblick.evaluation.modes import Job, autocast, head_nll
from niblick.evaluation.tally import Scored, Tally
from niblick.model import LanguageModel, State
from niblick.model.tree import Linear
from niblick.scoring.options import Adaptation, OptionsError
from niblick.scoring.windows import Window, document_windows, padded_batches, pieces

HEAD = "head"


class Adapters(nn.Module):
    """Low-rank additions B_d A_d x to chosen linear maps, one pair of factors for each of `rows`
    documents.

    A starts at the same random values for every document, B at zero, so that fresh adapters change
    nothing. The target "head" is a D -> D map on the final state, of an ensemble on its members'
    states side by side.
    """

    def __init__(
        self, model: LanguageModel, settings: Adaptation, rows: int, device: torch.device
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linears = chosen_linears(model, settings.targets)
        shapes = {name: tuple(module.weight.shape) for name, module in self.linears.items()}
        if HEAD in settings.targets:
            width = model.recipe.dim * model.recipe.members
            shapes[HEAD] = (width, width)
        self.factors = nn.ParameterDict()
        for name, (out, inner) in shapes.items():
            first = torch.randn(settings.rank, inner, generator=generator) / inner**0.5
            self.factors[_key(name) + "/a"] = nn.Parameter(
                first.to(device).expand(rows, -1, -1).clone()
            )
            self.factors[_key(name) + "/b"] = nn.Parameter(
                torch.zeros(rows, out, settings.rank, device=device)
            )

    def added(self, name: str, x: Tensor) -> Tensor:
        """Each document's own low-rank map of x (B, T, in), (B, T, out)."""
        a, b = (self.factors[f"{_key(name)}/{leaf}"].to(x.dtype) for leaf in "ab")
        found: Tensor = (x @ a.transpose(1, 2)) @ b.transpose(1, 2)
        return found

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The adapters act on the model inside the block."""
        for name, module in self.linears.items():
            module.extra = partial(self.added, name)
        try:
            yield
        finally:
            for module in self.linears.values():
                module.extra = None


def chosen_linears(model: LanguageModel, targets: Sequence[str]) -> dict[str, Linear]:
    """The model's linear maps whose last name is in `targets`."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear)
        and hasattr(module, "weight")
        and name.rpartition(".")[2] in targets
        and module.weight.dim() == 2
    }
    if not found and HEAD not in targets:
        raise OptionsError(
            f"targets {', '.join(targets)} name no linear map of the model; {HEAD!r} always exists"
        )
    return found


def adapt_documents(job: Job, settings: Adaptation) -> tuple[Tally, dict[str, Any]]:
    """Score all documents, each with its own adapters; between phases the model learns too."""
    if settings.phases > 1:
        job = replace(job, model=deepcopy(job.model))
    tally = Tally(len(job.asked), job.predictions, report=job.on_progress, device=job.device)
    base = Learner(job, settings, rate=settings.base_lr, method="sgd")
    windows = document_windows(job.tokens.cpu().numpy(), job.model.recipe.bos_id)
    phases = phase_groups(windows, settings.phases)
    updates = 0
    for index, group in enumerate(phases):
        batches = padded_batches(group, job.piece, settings.documents)
        for batch in batches[job.world.rank :: job.world.size]:
            updates += _adapt_batch(job, settings, tally, batch, base)
        if index + 1 < len(phases) and base.may_learn():
            tally.exchange(job.world, job.device)
            spans = row_spans(job, settings, group[0].start, group[-1].end)
            base.learn(tally.scored(job.tokens, spans), index / len(phases))
    return tally, {**base.facts(), "adapter_updates": updates}


def phase_groups(windows: Sequence[Window], phases: int) -> list[list[Window]]:
    """Consecutive documents in at most `phases` groups of about as many tokens each."""
    total = windows[-1].end if windows else 0
    groups: dict[int, list[Window]] = {}
    for window in windows:
        groups.setdefault(min(phases - 1, window.start * phases // max(total, 1)), []).append(
            window
        )
    return list(groups.values())


def _adapt_batch(
    job: Job, settings: Adaptation, tally: Tally, batch: Sequence[Window], clock: Learner
) -> int:
    """Score a batch of documents by pieces, learning after each; returns the number of updates."""
    adapters = Adapters(job.model, settings, len(batch), job.device)
    weights = list(adapters.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=settings.rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    state, updates = job.model.empty_state(len(batch), context=job.context), 0
    cuts = pieces(max(window.length for window in batch), settings.chunk)
    with adapters.attached():
        for index, (start, end) in enumerate(cuts):
            before, state = state, _score_piece(job, adapters, state, tally, batch, start, end)
            if index + 1 < len(cuts) and clock.may_learn():
                spans = [_span(window, start, end) for window in batch]
                _learn(
                    job,
                    settings,
                    adapters,
                    weights,
                    optimizer,
                    tally.scored(job.tokens, spans),
                    before,
                )
                updates += settings.epochs
    return updates


def _span(window: Window, start: int, end: int) -> tuple[int, int]:
    """Predictions start .. end-1 of a document as the stream's; empty behind its end."""
    return min(window.start + start, window.end), min(window.start + end, window.end)


def _score_piece(
    job: Job,
    adapters: Adapters,
    state: State,
    tally: Tally,
    batch: Sequence[Window],
    start: int,
    end: int,
) -> State:
    """Enter predictions start .. end-1 of each document, before anything is learnt from them."""
    spans = [_span(window, start, end) for window in batch]
    inputs = job.tokens.new_zeros(len(batch), end - start)
    targets = job.tokens.new_zeros(len(job.asked), len(batch), end - start)
    for row, (first, last) in enumerate(spans):
        inputs[row, : last - first] = job.tokens[first:last]
        targets[:, row, : last - first] = job.asked[:, first + 1 : last + 1]
    with torch.no_grad(), autocast(job):
        nll, after = _nll(job, adapters, state, inputs, targets)
    for row, (first, last) in enumerate(spans):
        if first < last:
            tally.enter(first, nll[:, row, : last - first])
    return after


def _nll(
    job: Job, adapters: Adapters, state: State, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, State]:
    hidden, after = job.model.hidden(inputs, state, keep=True)
    assert after is not None
    if f"{HEAD}/a" in adapters.factors:
        hidden = hidden + adapters.added(HEAD, hidden)
    return head_nll(job.model, hidden, targets), after


def _learn(
    job: Job,
    settings: Adaptation,
    adapters: Adapters,
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scored: Scored,
    before: State,
) -> None:
    """Train the adapters on what was scored, from the state before it.

    Each document counts by the mean of its own nats.
    """
    of_mean = scored.mask / scored.mask.sum(dim=1, keepdim=True).clamp(min=1)
    for _ in range(settings.epochs):
        with torch.enable_grad(), autocast(job):
            nll, _ = _nll(job, adapters, before, scored.inputs, scored.targets[None])
            loss = (nll[0] * of_mean).sum()
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        optimizer.step()


def _key(name: str) -> str:
    return name.replace(".", "/")
