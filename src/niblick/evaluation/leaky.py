"""The published full test-time training (systems.md section 3): it learns the split before it
scores it.

Kept to reproduce published numbers; no score of it is valid, and every score, card and table says
so.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from niblick.evaluation.adaptation import train_step
from niblick.evaluation.modes import Job, gather
from niblick.scoring.options import LeakyTraining
from niblick.scoring.windows import chunked_windows

REASON = "the weights were trained on the very tokens that were scored afterwards (condition C3)"


def learn_before_scoring(job: Job, settings: LeakyTraining) -> tuple[Job, dict[str, Any]]:
    """Train a copy for `epochs` over the whole stream in rows of the context; the job to score with
    it.
    """
    job = replace(job, model=deepcopy(job.model))
    weights = list(job.model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=settings.weight_decay)
    windows = list(chunked_windows(job.predictions, job.context))
    per_epoch = -(-len(windows) // settings.batch_rows)
    for step in range(settings.epochs * per_epoch):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, per_epoch, settings)
        first = step % per_epoch * settings.batch_rows
        batch = windows[first : first + settings.batch_rows]
        inputs, targets = gather(replace(job, asked=job.tokens[None]), batch)
        lengths = torch.tensor([window.length for window in batch], device=job.device)
        mask = (torch.arange(inputs.shape[1], device=job.device) < lengths[:, None]).float()
        train_step(job, weights, optimizer, (inputs, targets[0], mask), settings.clip)
    return job, {"steps": settings.epochs * per_epoch, "epochs": settings.epochs}


def rate(step: int, per_epoch: int, settings: LeakyTraining) -> float:
    """Linear warm-up, never under a tenth, then a cosine down to `final_lr`."""
    warmup = settings.warmup_epochs * per_epoch
    if step < warmup:
        return settings.lr * max(0.1, (step + 1) / warmup)
    progress = (step - warmup) / max(1.0, settings.epochs * per_epoch - warmup)
    return settings.final_lr + 0.5 * (settings.lr - settings.final_lr) * (
        1 + math.cos(math.pi * progress)
    )
