"""The language model: embed, one loop over the plan's virtual layers, head with softcap.

Parallel, chunked and one-token calls agree: `model(tokens)` equals feeding the same tokens in any
pieces through the state, at equal declared context.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from niblick.errors import NiblickError
from niblick.model.embedding import embed, value_embed
from niblick.model.mixers import MIXERS, Context
from niblick.model.ops import Ops
from niblick.model.rotary import rotary_table
from niblick.model.sidecar import sidecar
from niblick.model.state import State
from niblick.model.tree import Node, build_tree, initialise
from niblick.plan import Plan, VirtualLayer, make_plan
from niblick.recipe.model import ModelRecipe

NO_FACTORS: Mapping[str, Tensor] = MappingProxyType({})


Steps = dict[
    str, tuple[NDArray[np.float32], NDArray[np.float32]]
]  # of rows (R,), factors of columns (C,)


class LanguageModel(Node):
    """A causal language model over V tokens, built from a recipe's model section.

    `logits, state = model(tokens, state=None)`: tokens (B, T) int64, logits (B, T, V) float32.
    """

    def __init__(self, model: ModelRecipe, *, seed: int | None = 0) -> None:
        """Allocate every parameter of the plan; `seed=None` leaves them uninitialised."""
        super().__init__()
        self.recipe = model
        self.plan: Plan = make_plan(model)
        self.ops = Ops()  # may be replaced by a faster object of the same kind
        # a hint from the model's file: by name, what a matrix held whole multiples of
        self.steps: Steps = {}
        build_tree(self, self.plan)
        if seed is not None:
            initialise(self, self.plan, seed)

    def forward(
        self, tokens: Tensor, state: State | None = None, *, context: int | None = None
    ) -> tuple[Tensor, State]:
        """Logits for every position and the state after the last one.

        Without `state` the declared context is `context`, or the larger of T and the recipe's; a
        state brings its own. Raises `NiblickError` for tokens that are not (B, T) integers within
        the vocabulary.
        """
        self._check(tokens, state)
        hidden, after = self.hidden(tokens, state, context=context, keep=True)
        assert after is not None
        return self.head(hidden).float(), after

    def logits(self, tokens: Tensor, *, context: int | None = None) -> Tensor:
        """Logits (B, T, V) float32 of a stateless pass that keeps no state: cheaper for training
        and scoring.
        """
        return self.head(self.hidden(tokens, context=context)[0]).float()

    def hidden(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        context: int | None = None,
        keep: bool = False,
        factors: Mapping[str, Tensor] = NO_FACTORS,
    ) -> tuple[Tensor, State | None]:
        """The final normalised state (B, T, D), and with `keep` the decode state after the last
        token.

        `factors` (B, T, 1) by table ("token", "bigram", "value_embedding") are what training's
        dropout draws.
        """
        call = self._context(tokens, state, context, keep, factors)
        x = x0 = embed(self, call)
        call.value_embedding = value_embed(self, call)
        skips: list[Tensor] = []
        for layer in self.plan.layers:
            x = self._layer(layer, x, x0, skips, call)
        after = (
            State(call.after, call.position + tokens.shape[1], call.span_limit) if keep else None
        )
        return self.ops.mix_norm(x, x0, None, 1.0)[1], after

    def head(self, hidden: Tensor) -> Tensor:
        """Logits c tanh(z / c) of z = hidden @ W.T, W the tied embedding or the head of its own."""
        return self.softcap(F.linear(hidden, self._head_weight.to(hidden.dtype)))

    def head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The mean of -ln p(target) in nats, float32: what `head` says of `targets`, without
        keeping its logits.
        """
        return self.ops.head_loss(hidden, self._head_weight, targets, self.recipe.softcap)

    @property
    def _head_weight(self) -> Tensor:
        return cast(Tensor, self.tok_emb.weight if self.recipe.tied else self.lm_head.weight)

    def softcap(self, z: Tensor) -> Tensor:
        """c tanh(z / c), or z where the recipe has no softcap."""
        cap = self.recipe.softcap
        return z if cap is None else cap * torch.tanh(z.float() / cap)

    def mtp_logits(self, hidden: Tensor) -> list[Tensor]:
        """Logits of the multi-token-prediction heads: head j speaks of the token j+1 further on
        than `head`.
        """
        return [
            self.softcap(F.linear(hidden, head.weight.to(hidden.dtype)))
            for head in self.mtp_heads.children()
        ]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrices and so of the activations; embeddings and control values may
        keep float32.
        """
        weight = cast(Node, self.get_submodule(self.plan.layers[0].block)).mlp.fc.weight
        return cast(torch.dtype, weight.dtype)

    def empty_state(self, batch: int = 1, *, context: int | None = None) -> State:
        """The state before any token, on this model's device, with the declared context."""
        weight = self.tok_emb.weight
        return State.empty(
            self.plan, batch, context=context, device=weight.device, dtype=weight.dtype
        )

    def _context(
        self,
        tokens: Tensor,
        state: State | None,
        context: int | None,
        keep: bool,
        factors: Mapping[str, Tensor],
    ) -> Context:
        model = self.recipe
        boundary = tokens == model.bos_id if model.document_mask else None
        position = 0 if state is None else state.position
        limit = (
            state.context if state is not None else context or max(tokens.shape[1], model.context)
        )
        table = rotary_table(model, position, tokens.shape[1], limit, tokens.device)
        call = Context(
            model=model,
            root=self,
            tokens=tokens,
            boundary=boundary,
            rotary=table,
            before=state,
            span_limit=limit,
            position=position,
            keep=keep,
            dtype=self.dtype,
            ops=self.ops,
            factors=factors,
        )
        if model.document_attention == "within":
            _find_documents(call)
        return call

    def _layer(
        self, layer: VirtualLayer, x: Tensor, x0: Tensor, skips: list[Tensor], call: Context
    ) -> Tensor:
        """One virtual layer: skip, residual mix, mixer, channel mixer, sidecar."""
        block, scalars = (
            self.get_submodule(layer.block),
            cast(Node, self.get_submodule(layer.scalars)),
        )
        if layer.pop is not None:
            x = self.ops.add(x, skips.pop(), self.skip_weights[layer.pop])
        mix = scalars.resid_mix if self.recipe.residual_mix.enabled else None
        x, u = self.ops.mix_norm(x, x0, mix, layer.scale)
        mixed = MIXERS[layer.mixer](block, u, layer, call)
        mlp, slope = (
            cast(Node, block).mlp,
            0.0 if self.recipe.mlp.activation == "relu-squared" else self.recipe.mlp.slope,
        )
        x = self.ops.channel(
            x, mixed, scalars.attn_scale, layer.scale, mlp.fc, mlp.proj, scalars.mlp_scale, slope
        )
        if layer.sidecar_site is not None:
            x = sidecar(self, x, layer.sidecar_site, call)
        if layer.push:
            skips.append(x)
        return x

    def _check(self, tokens: Tensor, state: State | None) -> None:
        if (
            tokens.dim() != 2
            or tokens.dtype not in (torch.int64, torch.int32)
            or tokens.numel() == 0
        ):
            raise NiblickError(
                f"tokens must be (B, T) integers with B, T >= 1, not {tuple(tokens.shape)}"
                f" {tokens.dtype}"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.recipe.vocab_size:
            raise NiblickError(
                f"token ids {low}..{high} are outside the vocabulary"
                f" 0..{self.recipe.vocab_size - 1}"
            )
        if state is not None and state.tensors.keys() != self.plan.state_names:
            raise NiblickError(
                "the state belongs to another model: it does not hold what this one remembers"
            )
        if state is not None and state.batch != tokens.shape[0]:
            raise NiblickError(
                f"the state is of {state.batch} sequences, the tokens are of {tokens.shape[0]}"
            )


def _find_documents(call: Context) -> None:
    """Absolute position of the newest BOS at or before each token, and its entry in the state."""
    length = call.tokens.shape[1]
    positions = torch.arange(call.position, call.position + length, device=call.tokens.device)
    starts = torch.where(call.tokens == call.model.bos_id, positions, -1)
    last = call.last("document.start")
    before = (
        torch.zeros_like(positions[:1]).expand(call.tokens.shape[0], 1) if last is None else last
    )
    first = torch.cummax(torch.cat([before, starts], dim=1), dim=1).values[:, 1:]
    call.document_first = first
    call.remember("document.start", first[:, -1:])
