"""Recipes: one TOML file that holds everything which decides a result, as frozen typed objects. No
torch; pydantic once a recipe is made, not when a stored one is read.
"""

from typing import TYPE_CHECKING

from niblick.lazy import lazily

if TYPE_CHECKING:
    from niblick.recipe.compat import stored_values
    from niblick.recipe.load import (
        changed,
        keyed,
        list_recipes,
        load_recipe,
        recipe_from_dict,
        recipe_to_toml,
    )
    from niblick.recipe.schema import Recipe
    from niblick.recipe.stored import stored_recipe

__all__ = [
    "Recipe",
    "changed",
    "keyed",
    "list_recipes",
    "load_recipe",
    "recipe_from_dict",
    "recipe_to_toml",
    "stored_recipe",
    "stored_values",
]
__getattr__ = lazily(
    __name__,
    {
        "niblick.recipe.compat": ("stored_values",),
        "niblick.recipe.load": (
            "changed",
            "keyed",
            "list_recipes",
            "load_recipe",
            "recipe_from_dict",
            "recipe_to_toml",
        ),
        "niblick.recipe.schema": ("Recipe",),
        "niblick.recipe.stored": ("stored_recipe",),
    },
)
