"""Recipes: one TOML file that holds everything which decides a result, as frozen typed objects. No
torch.
"""

from niblick.recipe.compat import stored_values
from niblick.recipe.load import list_recipes, load_recipe, recipe_from_dict, recipe_to_toml
from niblick.recipe.schema import Recipe

__all__ = [
    "Recipe",
    "list_recipes",
    "load_recipe",
    "recipe_from_dict",
    "recipe_to_toml",
    "stored_values",
]
