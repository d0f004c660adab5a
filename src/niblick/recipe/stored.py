"""A recipe that a file stores, read without pydantic, whose import and validators take as long as
opening the model does.

`schema.json` is pydantic's own JSON Schema of `Recipe` (`tools/recipe_schema.py` writes it, a test
holds the two equal). A recipe that it and the checks accept as it stands is read here, to the
values that pydantic gives. All else is left to pydantic: values that it converts, and saying what
is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, cast

from niblick.files import package_folder
from niblick.recipe.checks import check_duration, check_model, check_training
from niblick.recipe.shape import ModelShape, SegmentShape, check_segment_layers, check_segment_name

if TYPE_CHECKING:
    from niblick.recipe.schema import Recipe

SCHEMA_FILE = "recipe/schema.json"
Rule = dict[str, Any]
Whole = Callable[[], Any]


class Reading:
    """A section's values, frozen; what else is asked of it, the section of pydantic answers."""

    def __init__(self, values: dict[str, Any], whole: Whole) -> None:
        self.__dict__.update(values, _whole=whole)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._whole(), name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a recipe is frozen: {name!r} cannot be set")

    def __eq__(self, other: object) -> bool:
        return bool(self._whole() == (other._whole() if isinstance(other, Reading) else other))

    def __hash__(self) -> int:
        return hash(self._whole())

    def __repr__(self) -> str:
        return repr(self._whole())

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._whole(),)


def _same(section: Any) -> Any:
    return section


class _Segment(SegmentShape, Reading):
    pass


class _Model(ModelShape, Reading):
    pass


def stored_recipe(values: dict[str, Any]) -> Recipe:
    """The recipe of plain values as JSON gives them; reads like a `Recipe`, built when it must be.

    Raises `RecipeError` as `recipe_from_dict` does.
    """

    @cache
    def whole() -> Recipe:
        from niblick.recipe.load import recipe_from_dict

        return recipe_from_dict(values)

    try:
        if not values.get("plugins"):
            return cast("Recipe", _section(_schema(), values, whole))
    except (OSError, ValueError):  # no file where modules come from memory
        pass
    return whole()


def made_recipe(recipe: Recipe) -> Recipe:
    """A `Recipe` of pydantic, of what `stored_recipe` gave."""
    made: Recipe = recipe._whole() if isinstance(recipe, Reading) else recipe
    return made


@cache
def _schema() -> Rule:
    schema: Rule = json.loads((package_folder() / SCHEMA_FILE).read_bytes())
    return schema


def _section(rule: Rule, values: Any, whole: Whole) -> Reading:
    """The values of one table, those that it leaves out included; ValueError for others."""
    fields = rule["properties"]
    if type(values) is not dict or not fields.keys() >= values.keys():
        raise ValueError
    found = {}
    for name, field in fields.items():
        if name not in values and name in rule.get("required", ()):
            raise ValueError
        default = {} if "$ref" in field else field.get("default")
        found[name] = _value(field, values.get(name, default), _Part(whole, name))
    return _checked(rule["title"], found, whole)


class _Part:
    """Where pydantic's section has a value: an attribute, then places in lists."""

    def __init__(self, whole: Whole, name: str, *places: int) -> None:
        self._whole, self._name, self._places = whole, name, places

    def at(self, place: int) -> _Part:
        return _Part(self._whole, self._name, *self._places, place)

    def __call__(self) -> Any:
        found = getattr(self._whole(), self._name)
        for place in self._places:
            found = found[place]
        return found


def _checked(title: str, found: dict[str, Any], whole: Whole) -> Reading:
    """What pydantic's validators of the section check, in `recipe.checks` and `recipe.shape`."""
    if title == "ModelRecipe":
        model = _Model(found, whole)
        check_model(cast(Any, model))
        return model
    if title == "StackRecipe":
        check_segment_name(found["name"])
        check_segment_layers(found["layers"])
        return _Segment(found, whole)
    section = Reading(found, whole)
    if title == "TrainingRecipe":
        check_duration(section.duration)
        check_duration(section.checkpoint_every)
        check_training(cast(Any, section))
    return section


def _value(rule: Rule, value: Any, part: _Part) -> Any:
    """A value as pydantic gives it; ValueError where the schema, or this reader, takes no such."""
    if "$ref" in rule:
        return _section(_schema()["$defs"][rule["$ref"].rpartition("/")[2]], value, part)
    for choice in rule.get("anyOf", ()):
        try:
            return _value(choice, value, part)
        except ValueError:
            continue
    return _KINDS[rule.get("type", "")](rule, value, part)


def _integer(rule: Rule, value: Any, part: _Part) -> int:
    if type(value) is not int:
        raise ValueError
    return int(_within(rule, value))


def _number(rule: Rule, value: Any, part: _Part) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError
    return float(_within(rule, value))


def _within(rule: Rule, value: float) -> float:
    low, above = rule.get("minimum", -inf), rule.get("exclusiveMinimum", -inf)
    high, below = rule.get("maximum", inf), rule.get("exclusiveMaximum", inf)
    if not (low <= value <= high and above < value < below):
        raise ValueError
    return value


def _string(rule: Rule, value: Any, part: _Part) -> str:
    """Text as UTF-8 has it, without NUL."""
    if type(value) is not str or b"\0" in value.encode():
        raise ValueError
    if len(value) > rule.get("maxLength", inf):
        raise ValueError
    if value not in rule.get("enum", (rule.get("const", value),)):
        raise ValueError
    if "pattern" in rule and not re.fullmatch(rule["pattern"], value):
        raise ValueError
    return value


def _boolean(rule: Rule, value: Any, part: _Part) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _null(rule: Rule, value: Any, part: _Part) -> None:
    if value is not None:
        raise ValueError


def _array(rule: Rule, value: Any, part: _Part) -> tuple[Any, ...]:
    if type(value) is not list or not rule.get("minItems", 0) <= len(value) <= rule["maxItems"]:
        raise ValueError
    rules = rule.get("prefixItems") or [rule["items"]] * len(value)
    return tuple(
        _value(each, item, part.at(place))
        for place, (each, item) in enumerate(zip(rules, value, strict=True))
    )


def _none(rule: Rule, value: Any, part: _Part) -> Any:
    """None of a rule's choices takes the value."""
    raise ValueError


_KINDS: dict[str, Callable[[Rule, Any, _Part], Any]] = {
    "integer": _integer,
    "number": _number,
    "string": _string,
    "boolean": _boolean,
    "null": _null,
    "array": _array,
    "": _none,
}
