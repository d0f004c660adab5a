"""Tests a built model for what a valid score needs: causal, the same twice, blind to its targets,
normalised.

The model gets small random weights first: published initialisations are zero in just the places
where a leak would show. Logits are (B, T, V) before any loss.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

LENGTHS = (32, 64, 128, 256, 1024)


def randomise(model: Any, seed: int = 7) -> None:
    """Gives every parameter a value that is not zero; vectors stay near where they were."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.data = (noise * parameter.shape[-1] ** -0.5).to(parameter.dtype)
            else:
                held = parameter.data.float()
                held = torch.where(
                    held.isfinite() & (held.abs() < 100), held, torch.zeros_like(held)
                )
                parameter.data = (held + 0.05 * noise).to(parameter.dtype)
    model.eval()


def _catching(calls: list[Any]) -> Any:
    """A context that keeps the scores of every cross entropy."""
    import torch

    class Catcher(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is torch.nn.functional.cross_entropy:
                calls.append((args[0] if args else kwargs["input"]).detach())
            return func(*args, **kwargs)

    return Catcher()


def logits_call(model: Any, vocab: int) -> tuple[Callable[[Any, Any], Any], bool, int] | None:
    """How to get logits (B, T, V) from (tokens, targets): the call, whether targets go in, a length
    it takes.
    """
    import torch

    for length in LENGTHS:
        tokens = torch.randint(2, vocab, (1, length))
        for call, takes_targets in _ways(model, vocab):
            with contextlib.suppress(Exception):
                out = call(tokens, tokens.roll(-1, 1))
                if (
                    out is not None
                    and out.shape[:2] == tokens.shape
                    and out.size(-1) >= vocab
                    and out.isfinite().all()
                ):
                    return call, takes_targets, length
    return None


def _ways(model: Any, vocab: int) -> Iterator[tuple[Callable[[Any, Any], Any], bool]]:
    import torch

    wanted = len(
        [
            p
            for p in inspect.signature(model.forward).parameters.values()
            if p.default is p.empty and p.kind < 2
        ]
    )

    def caught(tokens: Any, targets: Any) -> Any:
        calls: list[Any] = []
        with _catching(calls), torch.no_grad():
            model(tokens, targets)
        for scores in calls:
            if scores.size(-1) >= vocab and scores.numel() == tokens.numel() * scores.size(-1):
                return scores.reshape(*tokens.shape, -1).float()
        return None

    def plain(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        def call(tokens: Any, _: Any) -> Any:
            with torch.no_grad():
                out = function(tokens)
            out = out[0] if isinstance(out, tuple) else getattr(out, "logits", out)
            return out.float()

        return call

    if hasattr(model, "forward_logits"):
        yield plain(model.forward_logits), False
    if wanted == 1:
        yield plain(model), False
    yield caught, True


def probe(model: Any, vocab: int, bos: int = 1) -> dict[str, Any]:
    """The measurements, or `{"unusable": reason}`; differences are the largest of absolute logit
    differences, the scale is how far logits spread over positions.
    """
    import torch

    torch.manual_seed(0)
    found = logits_call(model, vocab)
    if found is None:
        return {"unusable": "no call of the model gave logits for a batch of token ids"}
    call, takes_targets, length = found
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, vocab, (1, length), generator=generator)
    other = torch.randint(2, vocab, (1, length), generator=generator)
    targets = tokens.roll(-1, 1)
    base = call(tokens, targets)
    cuts = sorted({length // 4, length // 2, length - 2})
    seen: dict[str, Any] = {
        "length": length,
        "takes_targets": takes_targets,
        "scale": float((base - base.mean(1, keepdim=True)).std()),
    }
    seen["repeat"] = _difference(base, call(tokens, targets))
    seen["future"] = max(_future(call, tokens, targets, other, base, cut) for cut in cuts)
    if takes_targets:
        seen["targets"] = _difference(base, call(tokens, other))
    seen["across_bos"] = _across_bos(call, tokens, other, bos)
    seen["normalised"] = float((torch.softmax(base[..., :vocab], -1).sum(-1) - 1).abs().max())
    return seen


def _future(
    call: Callable[[Any, Any], Any], tokens: Any, targets: Any, other: Any, base: Any, cut: int
) -> float:
    """How far logits up to `cut` move when only the tokens after it change."""
    import torch

    changed = torch.cat([tokens[:, : cut + 1], other[:, cut + 1 :]], 1)
    return _difference(base[:, : cut + 1], call(changed, targets)[:, : cut + 1])


def _across_bos(call: Callable[[Any, Any], Any], tokens: Any, other: Any, bos: int) -> float:
    """How far the first position of a document sees the token before it."""

    half = tokens.size(1) // 2
    first, second = tokens.clone(), tokens.clone()
    first[:, half] = second[:, half] = bos
    second[:, :half] = other[:, :half]
    return _difference(
        call(first, first.roll(-1, 1))[:, half:], call(second, second.roll(-1, 1))[:, half:]
    )


def _difference(a: Any, b: Any) -> float:
    return float((a - b).abs().max())
