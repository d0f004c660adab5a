"""Plans: a recipe's model expanded, without torch, into layers, parameters and sizes."""

from niblick.components.base import (
    ComponentSpec,
    Init,
    Matmul,
    Parameter,
    Role,
    StateEntry,
    VirtualLayer,
)
from niblick.plan.expand import (
    Plan,
    each_member,
    layer_spec,
    make_plan,
    member_prefix,
    member_prefixes,
    of_member,
)

__all__ = [
    "ComponentSpec",
    "Init",
    "Matmul",
    "Parameter",
    "Plan",
    "Role",
    "StateEntry",
    "VirtualLayer",
    "each_member",
    "layer_spec",
    "make_plan",
    "member_prefix",
    "member_prefixes",
    "of_member",
]
