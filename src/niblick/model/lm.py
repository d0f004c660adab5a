"""The language model: embed, one loop over the plan's virtual layers, head with softcap.

Parallel, chunked and one-token calls agree: `model(tokens)` equals feeding the same tokens in any
pieces through the state, at equal declared context.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from niblick.components import DOCUMENTS, MTP, Call
from niblick.components.attention import rotary_base
from niblick.components.functional import Rotation, nll, rotation
from niblick.errors import NiblickError
from niblick.model.equations import Equations, softcap
from niblick.model.state import State
from niblick.model.tree import Linear, Node, build_tree, initialise
from niblick.plan import Plan, make_plan
from niblick.recipe.model import ModelRecipe

NO_FACTORS: Mapping[str, Tensor] = MappingProxyType({})
PLAIN = Equations()
KEPT_POSITIONS = 1 << 16  # whose rotary angles a model keeps, at most


class LanguageModel(Node):
    """A causal language model over V tokens, built from a recipe's model section.

    `logits, state = model(tokens, state=None)`: tokens (B, T) int64, logits (B, T, V) float32.
    """

    def __init__(self, model: ModelRecipe, *, seed: int | None = 0) -> None:
        """Allocate every parameter of the plan; `seed=None` leaves them uninitialised."""
        super().__init__()
        self.recipe = model
        self.plan: Plan = make_plan(model)
        self.kernels: Equations | None = None  # see `use_kernels`
        build_tree(self, self.plan)
        self._register_rotation()
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
        """The final normalised state (B, T, D), and with `keep` the decode state after the last.

        `factors` (B, T, 1) by table ("token", "bigram", "value_embedding") are what training's
        dropout draws.
        """
        call = self._call(tokens, state, context, keep, factors)
        form = self._form(call)
        x = x0 = form.embed(call)
        call.value_embedding = form.values(call)
        skips: list[Tensor] = []
        for layer in self.plan.layers:
            if layer.pop is not None:
                x = form.pop(layer, x, skips.pop(), call)
            x = form.block(layer, x, x0, call)
            if layer.sidecar_site is not None:
                x = form.sidecar(layer.sidecar_site, x, call)
            if layer.push:
                skips.append(x)
        after = State(call.after, call.position + tokens.shape[1], call.context) if keep else None
        return form.finish(x, call), after

    def head(self, hidden: Tensor) -> Tensor:
        """Logits c tanh(z / c) of z = hidden @ W.T, W the tied embedding or the head of its own."""
        return softcap(F.linear(hidden, self._head_weight.to(hidden.dtype)), self.recipe.softcap)

    def head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The mean of -ln p(target) in nats, float32: what `head` says of `targets`."""
        form = self._head_form(hidden)
        return form.head_loss(hidden, self._head_weight, targets, self.recipe.softcap)

    def _head_form(self, hidden: Tensor) -> Equations:
        return self.kernels if self.kernels and hidden.dtype is self.dtype else PLAIN

    @property
    def _head_weight(self) -> Tensor:
        return cast(Tensor, self.tok_emb.weight if self.recipe.tied else self.lm_head.weight)

    def mtp_logits(self, hidden: Tensor) -> list[Tensor]:
        """Logits of the multi-token-prediction heads, head j's of the token j + 1 further on."""
        return [softcap(z, self.recipe.softcap) for z in MTP.forward(self, hidden)]

    def mtp_losses(self, hidden: Tensor, targets: Tensor) -> list[Tensor]:
        """The mean of -ln p(target) of each multi-token-prediction head, where it has targets."""
        form, cap = self._head_form(hidden), self.recipe.softcap
        if not form.fuses_heads:
            return [
                nll(logits[:, : -(j + 1)], targets[:, j + 1 :]).mean()
                for j, logits in enumerate(self.mtp_logits(hidden))
            ]
        return [
            form.head_loss(hidden[:, : -(j + 1)], head.weight, targets[:, j + 1 :], cap)
            for j, head in enumerate(self.mtp_heads.children())
        ]

    @property
    def dtype(self) -> torch.dtype:
        """That of the matrices and so of the activations; all else may keep float32."""
        weight = cast(Node, self.get_submodule(self.plan.layers[0].block)).mlp.fc.weight
        return cast(torch.dtype, weight.dtype)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return cast(torch.device, self.tok_emb.weight.device)

    def empty_state(self, batch: int = 1, *, context: int | None = None) -> State:
        """The state before any token, on this model's device, with the declared context."""
        kind = self.tok_emb.weight.dtype
        return State.empty(self.plan, batch, context=context, device=self.device, dtype=kind)

    @property
    def adapted(self) -> bool:
        """Whether anything is added to what a linear map gives (see `Linear.extra`)."""
        return any(isinstance(each, Linear) and each.extra for each in self.modules())

    def _form(self, call: Call) -> Equations:
        """The kernels where they were put in and take the call, else plain torch."""
        alone = call.before is None and not call.keep
        if self.kernels is None or not alone or self.adapted or not self.kernels.takes(call):
            return PLAIN
        return self.kernels

    def _register_rotation(self) -> None:
        """Keep the angles of the recipe's context beside the weights: they move with them."""
        model, kept = self.recipe, min(self.recipe.context, KEPT_POSITIONS)
        self._base = rotary_base(model, model.context)
        sizes = (model.rope_dims // 2, model.rope_frequency_dims)
        table = rotation(self._base, *sizes, 0, kept, torch.device("cpu"))
        for name, values in zip(("rotary_cos", "rotary_sin"), table, strict=True):
            self.register_buffer(name, values.clone(), persistent=False)

    def _rotation(self, context: int, start: int, length: int) -> Rotation:
        """cos and sin of a call's positions at its declared context."""
        base, kept = rotary_base(self.recipe, context), cast(Tensor, self.rotary_cos)
        if base == self._base and start + length <= len(kept):
            part = slice(start, start + length)
            return kept[part], cast(Tensor, self.rotary_sin)[part]
        sizes = (self.recipe.rope_dims // 2, self.recipe.rope_frequency_dims)
        return rotation(base, *sizes, start, length, self.device)

    def _call(
        self,
        tokens: Tensor,
        state: State | None,
        context: int | None,
        keep: bool,
        factors: Mapping[str, Tensor],
    ) -> Call:
        model, length = self.recipe, tokens.shape[1]
        position = 0 if state is None else state.position
        declared = state.context if state is not None else context or max(length, model.context)
        call = Call(
            model=model,
            root=self,
            tokens=tokens,
            boundary=tokens == model.bos_id if model.document_mask else None,
            rotary=self._rotation(declared, position, length),
            before=None if state is None else state.tensors,
            context=declared,
            position=position,
            keep=keep,
            dtype=self.dtype,
            factors=factors,
        )
        if DOCUMENTS.used(model):
            call.document_first = DOCUMENTS.forward(call)
        return call

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
