"""A recipe read without pydantic is the recipe that pydantic reads, or is left to it."""

import json
import pickle
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.artifact import container
from niblick.artifact.load import shipped_models
from niblick.errors import RecipeError
from niblick.files import package_folder
from niblick.plan import make_plan
from niblick.recipe import Recipe, list_recipes, load_recipe, recipe_from_dict, stored_recipe
from niblick.recipe.schema import Section
from niblick.recipe.stored import SCHEMA_FILE, Reading, made_recipe

SCHEMA = package_folder() / SCHEMA_FILE
READ = {
    *("$defs", "$ref", "anyOf", "const", "default", "enum", "exclusiveMaximum"),
    *("exclusiveMinimum", "items", "maxItems", "maxLength", "maximum", "minItems", "minimum"),
    *("pattern", "prefixItems", "properties", "required", "title", "type"),
}
UNREAD = {"description", "additionalProperties"}  # the latter is false everywhere
SHIPPED = {name: load_recipe(name).model_dump(mode="json") for name in list_recipes()}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**70, 0.0, 0.5, 1.0, 2.0, -1.5, 1e9, float("nan"), float("inf")]),
    st.sampled_from(["", "auto", "full", "3 steps", "1e6 tokens", "a\0b", "\ud800", "blocks\n"]),
    st.sampled_from(["3", "1.5", "true", "no such", "x" * 5000, "window:8", "adam"]),
    st.sampled_from([[], [0], [1, 2], [0.5, 0.25], [0.5, 1], ["full"], [[1]], {}, {"a": 1}, [{}]]),
)


def places(values, before=()):
    """Paths of all keys and items, tables and lists included."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from places(value, (*before, key))


def same(reading, made) -> None:
    """Field by field: the same values of the same types."""
    if isinstance(made, Section):
        assert isinstance(reading, Reading)
        for name in type(made).model_fields:
            same(vars(reading)[name], getattr(made, name))
    elif isinstance(made, tuple):
        assert type(reading) is tuple and len(reading) == len(made)
        for one, other in zip(reading, made, strict=True):
            same(one, other)
    else:
        assert type(reading) is type(made) and reading == made


def read(values):
    try:
        return stored_recipe(values), ""
    except RecipeError as error:
        return None, str(error)


def test_the_schema_file_is_what_pydantic_derives_from_the_recipe() -> None:
    assert (
        json.loads(SCHEMA.read_text("utf-8")) == Recipe.model_json_schema()
    )  # tools/recipe_schema.py


def test_the_reader_knows_every_keyword_of_the_schema() -> None:
    found = set()

    def walk(rule) -> None:
        found.update(rule)
        assert not rule.get("additionalProperties")
        for key in ("items",):
            if key in rule:
                walk(rule[key])
        for key in ("anyOf", "prefixItems"):
            for each in rule.get(key, ()):
                walk(each)
        for key in ("properties", "$defs"):
            for each in rule.get(key, {}).values():
                walk(each)

    walk(json.loads(SCHEMA.read_text("utf-8")))
    assert found <= READ | UNREAD


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_recipe_is_read_without_pydantic(name: str) -> None:
    reading = stored_recipe(SHIPPED[name])
    assert isinstance(reading, Reading)
    same(reading, recipe_from_dict(SHIPPED[name]))
    assert make_plan(reading.model) == make_plan(load_recipe(name).model)


def test_a_shipped_model_holds_a_recipe_that_is_read_without_pydantic() -> None:
    for path in shipped_models().values():
        values = container.read(path).header["recipe"]
        assert isinstance(stored_recipe(values), Reading)
        same(stored_recipe(values), recipe_from_dict(values))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SHIPPED)), st.data())
def test_an_altered_recipe_is_read_as_pydantic_reads_it_or_refused_in_its_words(name, data) -> None:
    values = deepcopy(SHIPPED[name])
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(list(places(values))))
        node = values
        for key in path:
            node = node[key]
        what = data.draw(st.sampled_from(["odd", "odd", "odd", "gone", "more"]))
        if what == "gone":
            del node[last]
        elif what == "more" and isinstance(node, dict):
            node[f"{last}_x"] = 1
        else:
            node[last] = deepcopy(data.draw(ODD))
    try:
        made, words = recipe_from_dict(deepcopy(values)), ""
    except RecipeError as error:
        made, words = None, str(error)
    found, said = read(values)
    assert said == words
    if isinstance(found, Reading):
        same(found, made)
    assert made_recipe(found) == made if made else found is None


def test_a_reading_is_frozen_and_answers_all_else_as_the_recipe() -> None:
    values = SHIPPED["pocket"]
    reading, made = stored_recipe(values), recipe_from_dict(values)
    with pytest.raises(AttributeError, match="frozen"):
        reading.seed = 3
    with pytest.raises(AttributeError):
        reading.no_such_key  # noqa: B018
    assert reading.model.stack[0].model_dump() == made.model.stack[0].model_dump()
    assert reading.model == made.model and made == reading and hash(reading) == hash(made)
    assert reading.model.depth == made.model.depth and repr(reading) == repr(made)
    assert type(pickle.loads(pickle.dumps(reading))) is Recipe
    assert isinstance(made_recipe(reading), Recipe) and made_recipe(made) is made


def test_a_recipe_that_needs_a_plugin_is_left_to_pydantic() -> None:
    with pytest.raises(RecipeError, match="needs the plugin"):
        stored_recipe(SHIPPED["pocket"] | {"plugins": ["no_such_module"]})


def test_the_reader_does_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from niblick.recipe import stored

    monkeypatch.setattr(stored, "_schema", lambda: Path("/no/such/file").read_bytes())
    assert type(stored_recipe(SHIPPED["pocket"])) is Recipe
