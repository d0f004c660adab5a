"""Plans: a recipe's model section expanded, without torch, into virtual layers, parameters and
sizes.
"""

from niblick.plan.expand import Plan, layer_table, make_plan
from niblick.plan.layer import VirtualLayer
from niblick.plan.table import Init, Parameter, Product, Role, StateEntry, Table

__all__ = [
    "Init",
    "Parameter",
    "Plan",
    "Product",
    "Role",
    "StateEntry",
    "Table",
    "VirtualLayer",
    "layer_table",
    "make_plan",
]
