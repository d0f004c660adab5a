"""Write the JSON Schema of recipes, which pydantic derives from `Recipe`: for editors, and for
`niblick.recipe.stored`, which reads stored recipes without pydantic.

    python tools/recipe_schema.py
"""

from __future__ import annotations

import json

from niblick.files import package_folder
from niblick.recipe import Recipe
from niblick.recipe.stored import SCHEMA_FILE


def text() -> str:
    """The file's content."""
    return json.dumps(Recipe.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    (package_folder() / SCHEMA_FILE).write_text(text(), "utf-8")
