"""From nodes to the values that the recipe's models want, with every mismatch reported in plain words.

The models' own annotations are read, so that this module knows no section by name; pydantic has the last word when
the `Recipe` is built. Conversion is guided by the target because the same YAML text means different things: `no` is a
bool in `trust_remote_code` and text in `revision`, `2024` is text in `split`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ptcli.errors import KeyPath, Problem
from ptcli.recipe.model import DataEntry, ModelSpec, Recipe, Section, keys_of
from ptcli.recipe.paths import NotAPath, is_path, resolve_path
from ptcli.recipe.secrets import has_reference
from ptcli.recipe.suggest import NOT_BUILT, advise_on_key, is_meant, nearest
from ptcli.recipe.tree import Broken, Items, Node, Scalar, Table, describe, dotted

FAULTY: Final = object()
"""Stands for a value that was left out because of a problem."""

UNKNOWN_MODEL = "unknown/unknown"
"""Stands for a model path that is missing, so that the rest can still be checked."""

_STAND_INS: Mapping[tuple[type[Section], str], Any] = {
    (ModelSpec, "path"): UNKNOWN_MODEL,
    (DataEntry, "path"): "builtin:arithmetic",
    (Recipe, "model"): {"path": UNKNOWN_MODEL},
    (Recipe, "data"): {"train": [{"path": "builtin:arithmetic"}]},
}
_PUBLIC = frozenset({(Recipe, "name"), (Recipe, "method"), (Recipe, "output_dir")})
"""Fields that show up in names and places where no secret can be."""

_PLACES: Mapping[type[Section], str] = {ModelSpec: "model", DataEntry: "data.train"}


class Converter:
    """Converts one tree. `problems` and `kept` fill up while it does."""

    def __init__(self, library_home: Callable[[str], str] = lambda name: ""):
        self.library_home = library_home
        """The recipe key for a library's key, for saying where a misplaced one belongs."""
        self.problems: list[Problem] = []
        self.kept: dict[KeyPath, list[int]] = {}
        """Lists that lost entries: the indices, in the recipe, of those that are left."""

    def section(self, cls: type[Section], node: Table, key: KeyPath) -> dict[str, Any]:
        """The section's valid fields; a required one that is missing or faulty gets a stand-in or stays away."""
        values: dict[str, Any] = {}
        fields = keys_of(cls)
        for name, entry in node.entries.items():
            field = fields.get(name)
            if field is None:
                self.refuse_key(cls, name, key)
                continue
            value = self.field(cls, name, field, entry.node, (*key, name))
            if value is not FAULTY:
                values[name] = value
        self.fill_required(cls, node, key, values)
        return values

    def fill_required(self, cls: type[Section], node: Table, key: KeyPath, values: dict[str, Any]) -> None:
        fields = keys_of(cls)
        for name, field in fields.items():
            if not field.is_required() or name in values:
                continue
            others = (other for other in node.entries if other not in fields)
            meant = any(is_meant(other, name, _place(cls, key)) for other in others)
            if name not in node.entries and not meant:
                place = f" in `{dotted(key)}`" if key else ""
                self.refuse((*key, name), f"`{name}` is missing{place}", f"add it: {_first_line(field.description)}")
            if (cls, name) in _STAND_INS:
                values[name] = _STAND_INS[cls, name]

    def field(self, cls: type[Section], name: str, field: FieldInfo, node: Node, key: KeyPath) -> Any:
        annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        if _is_empty_container(field, annotation, node):
            return FAULTY
        value = self.value(annotation, node, key)
        if not isinstance(value, str) or value is FAULTY:
            return value
        if has_reference(value) and ((cls, name) in _PUBLIC or is_path(cls, name)):
            self.refuse(key, f"`{dotted(key)}` is written into files, so no secret can be part of it", "")
            return FAULTY
        try:
            return resolve_path(cls, name, value, node.source.folder)
        except NotAPath as error:
            self.refuse(key, *error.args)
            return FAULTY

    def value(self, annotation: Any, node: Node, key: KeyPath) -> Any:
        """The node as `annotation` wants it, or FAULTY once the problem is noted."""
        if isinstance(node, Broken):
            return FAULTY
        options = _options(annotation)
        if any(option.type is Any for option in options):
            value = self.anything(node, key)
        elif isinstance(node, Table):
            value = self.table(options, node, key)
        elif isinstance(node, Items):
            value = self.items(options, node, key)
        else:
            value = convert_scalar([option.type for option in options], node)
            if value is FAULTY:
                self.refuse_type(options, node, key)
        limits = [limit for option in options for limit in option.limits if _accepts(option.type, value)]
        return FAULTY if value is FAULTY or not self.within(limits, value, key) else value

    def table(self, options: list[_Option], node: Table, key: KeyPath) -> Any:
        for option in options:
            if isinstance(option.type, type) and issubclass(option.type, Section):
                values = self.section(option.type, node, key)
                required = [name for name, field in keys_of(option.type).items() if field.is_required()]
                return values if all(name in values for name in required) else FAULTY
            if get_origin(option.type) is dict:
                inner = get_args(option.type)[1]
                values = {name: self.value(inner, entry.node, (*key, name)) for name, entry in node.entries.items()}
                return {name: value for name, value in values.items() if value is not FAULTY}
        return self.refuse_type(options, node, key)

    def items(self, options: list[_Option], node: Items, key: KeyPath) -> Any:
        for option in options:
            if get_origin(option.type) is list:
                (inner,) = get_args(option.type)
                values = [self.value(inner, child, (*key, index)) for index, child in enumerate(node.nodes)]
                kept = [index for index, value in enumerate(values) if value is not FAULTY]
                if len(kept) == len(values):
                    return values
                self.kept[key] = kept
                # An empty list would look like a second mistake.
                return [values[index] for index in kept] if kept else FAULTY
        return self.refuse_type(options, node, key)

    def anything(self, node: Node, key: KeyPath) -> Any:
        """The node as it is, for a library's own fields."""
        if isinstance(node, Broken):
            return FAULTY
        if isinstance(node, Table):
            values = {name: self.anything(entry.node, (*key, name)) for name, entry in node.entries.items()}
            return {name: value for name, value in values.items() if value is not FAULTY}
        if isinstance(node, Items):
            children = [self.anything(child, (*key, index)) for index, child in enumerate(node.nodes)]
            return FAULTY if any(child is FAULTY for child in children) else children
        return node.value

    def within(self, limits: list[Any], value: Any, key: KeyPath) -> bool:
        broken = [text for limit in limits if (text := _breach(limit, value))]
        for text in broken:
            self.refuse(key, f"`{dotted(key)}` must {text}", "")
        return not broken

    def refuse_type(self, options: list[_Option], node: Node, key: KeyPath) -> Any:
        choices = [choice for option in options for choice in _choices(option.type)]
        close = nearest(node.text, map(str, choices)) if isinstance(node, Scalar) else None
        if isinstance(node, Scalar) and node.yes_or_no is False and "off" in choices:
            close = "off"
        fix = f"did you mean `{close}`?" if close else ""
        self.refuse(key, f"`{dotted(key)}` must be {_wanted(options)}, not {describe(node)}", fix)
        return FAULTY

    def refuse_key(self, cls: type[Section], name: str, key: KeyPath) -> None:
        place = _place(cls, key)
        shown = f"`{dotted((*key, name))}`"
        if name in NOT_BUILT.get(place, ()):
            self.refuse((*key, name), f"{shown} is not built yet", "remove it")
            return
        fix = advise_on_key(name, keys_of(cls), place, self.library_home)
        self.refuse((*key, name), f"unknown key {shown}", fix)

    def refuse(self, key: KeyPath, message: str, fix: str) -> None:
        self.problems.append(Problem(message, fix, key=key))


def _place(cls: type[Section], key: KeyPath) -> str:
    """The section as `suggest` knows it: dotted, without indices, and one name for all models and for all data."""
    return _PLACES.get(cls) or ".".join(part for part in key if isinstance(part, str))


class _Option:
    """One type that a value may have, and its limits (`ge=1` and the like)."""

    def __init__(self, type_: Any, limits: tuple[Any, ...]):
        self.type = type_
        self.limits = limits


def _options(annotation: Any, limits: tuple[Any, ...] = ()) -> list[_Option]:
    """The members of a union, aliases and annotations taken apart."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        found = [m for data in metadata for m in (data.metadata if isinstance(data, FieldInfo) else [data])]
        return _options(inner, (*limits, *found))
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in _options(member, limits)]
    return [_Option(annotation, limits)]


def convert_scalar(wanted: list[Any], node: Scalar) -> Any:
    """A scalar as one of the types `wanted`, or FAULTY. What YAML says it is comes first, then what it could be."""
    value = node.value
    if value is None and types.NoneType in wanted:
        return None
    if isinstance(value, bool) and bool in wanted:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and (int in wanted or float in wanted):
        return value if int in wanted else float(value)
    if isinstance(value, float) and float in wanted:
        return value
    if bool in wanted and node.yes_or_no is not None:
        return node.yes_or_no
    if value is not None and (str in wanted or node.text in (c for option in wanted for c in _choices(option))):
        return node.text
    return FAULTY


def _accepts(type_: Any, value: Any) -> bool:
    """Whether the limits of this member of a union are meant for the value."""
    return type_ is type(value) or get_origin(type_) is type(value)


def _is_empty_container(field: FieldInfo, annotation: Any, node: Node) -> bool:
    """`training:` with every line under it commented out is an empty section, not a null."""
    if not isinstance(node, Scalar) or node.value is not None or field.is_required() or isinstance(node, Broken):
        return False
    return all(_is_container(option.type) for option in _options(annotation))


def _is_container(type_: Any) -> bool:
    return get_origin(type_) in (dict, list) or (isinstance(type_, type) and issubclass(type_, Section))


def _breach(limit: Any, value: Any) -> str:
    """How a value breaks one limit, as the end of "must ..."; empty when it does not."""
    checks: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
        ("ge", lambda a, b: a >= b, "be at least {}"),
        ("gt", lambda a, b: a > b, "be more than {}"),
        ("le", lambda a, b: a <= b, "be at most {}"),
        ("lt", lambda a, b: a < b, "be less than {}"),
        ("min_length", lambda a, b: len(a) >= b, "have at least {}"),
    )
    if getattr(limit, "allow_inf_nan", None) is False and isinstance(value, float) and not math.isfinite(value):
        return f"be a finite number, not {value}"
    for name, holds, text in checks:
        bound = getattr(limit, name, None)
        if bound is not None and value is not None and value is not FAULTY and not holds(value, bound):
            what = f"{bound} {'entry' if bound == 1 else 'entries'}" if name == "min_length" else bound
            got = "" if name == "min_length" else f", not {value}"
            return text.format(what) + got
    return ""


_NAMES: Mapping[Any, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "",
}  # fmt: skip


def _wanted(options: list[_Option]) -> str:
    """The types of a union in plain words."""
    words = dict.fromkeys(_name(option.type) for option in options)
    return " or ".join(word for word in words if word)


def _name(type_: Any) -> str:
    choices = _choices(type_)
    if choices:
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    if get_origin(type_) is list:
        return "a list"
    return _NAMES.get(type_, "a mapping")


def _choices(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if get_origin(type_) is Literal else ()


def _first_line(text: str | None) -> str:
    line = (text or "").strip().split("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]
