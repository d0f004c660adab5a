"""Token embedding, tied to the head or beside a head of its own (systems.md sections 1 and 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niblick.components.base import (
    ZEROS,
    Call,
    Component,
    ComponentSpec,
    Init,
    Matmul,
    Parameter,
    Role,
    Technique,
    section_entry,
    setting,
    switch,
)

if TYPE_CHECKING:
    from torch import Tensor

    from niblick.recipe.model import ModelRecipe


class Embedding(Component):
    """Rows of the token table on the way in, the head's matrix on the way out."""

    name = "embedding"
    table = "token"
    techniques = (
        Technique(
            name="tied",
            summary="tied embedding (a head of its own)",
            without=setting(model__tied=False),
            card=switch("tied embedding", lambda model: model.tied),
        ),
        Technique(
            name="softcap",
            summary="logit softcap",
            without=setting(model__softcap=None),
            card=switch(
                "logit softcap",
                lambda model: model.softcap is not None,
                cap=lambda model: model.softcap,
            ),
        ),
        Technique(
            name="overtone",
            summary="overtone embedding (normal)",
            group="initialization",
            without=setting(model__embedding__init="normal"),
            card=lambda recipe, plan: [
                section_entry(
                    f"{recipe.model.embedding.init} embedding", recipe.model.embedding, "init"
                )
            ],
        ),
    )

    def spec(self, model: ModelRecipe) -> ComponentSpec:
        """The table (V, D) and, where it is not tied, the head (V, D)."""
        shape = (model.vocab_size, model.dim)
        init = Init(kind=model.embedding.init, value=model.embedding.std)
        rows = Parameter(
            name="tok_emb.weight",
            shape=shape,
            role=Role.EMBEDDING,
            init=init,
            component="embedding",
        )
        head = Parameter(
            name="lm_head.weight", shape=shape, role=Role.MATRIX, init=ZEROS, component="head"
        )
        return ComponentSpec(
            parameters=(rows,) if model.tied else (rows, head),
            matmuls=(Matmul(name="head", flops=2 * model.vocab_size * model.dim),),
        )

    def forward(self, root: Any, call: Call) -> Tensor:
        """The tokens' rows (B, T, D) in the table's dtype, as dropout leaves them."""
        from torch.nn.functional import embedding

        from niblick.components.functional import dropped

        return dropped(embedding(call.tokens, root.tok_emb.weight), call.factors.get(self.table))


EMBEDDING = Embedding()
