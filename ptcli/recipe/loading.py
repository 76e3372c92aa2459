"""From a recipe file and overrides to a `Recipe`, with every problem at the place where it was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ptcli.errors import KeyPath, Position, Problem, RequestError
from ptcli.methods import Method
from ptcli.recipe.catalogue import home_of
from ptcli.recipe.convert import Converter
from ptcli.recipe.dump import dump_recipe
from ptcli.recipe.extends import RecipeFiles
from ptcli.recipe.interpolate import interpolate
from ptcli.recipe.libraries import check_libraries
from ptcli.recipe.model import Recipe
from ptcli.recipe.overrides import Override, apply_overrides, parse_overrides
from ptcli.recipe.paths import absolute
from ptcli.recipe.references import check_references
from ptcli.recipe.requirements import (
    contradictions,
    empty_names,
    fraction_out_of_range,
    kl_without_penalty,
    missing_sections,
    read_method,
    refused_backend,
    refused_evaluation,
    superfluous_sections,
)
from ptcli.recipe.secrets import find_literal_secrets, hide_secret
from ptcli.recipe.tree import Broken, Entry, Node, Scalar, Table, break_at, dotted, positions

__all__ = ["Loaded", "SourceMap", "dump_recipe", "load_recipe"]


@dataclass(frozen=True)
class SourceMap:
    """Where every key of a loaded recipe was written."""

    positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    kept: Mapping[KeyPath, Sequence[int]] = field(default_factory=dict)
    """Lists of the recipe that lost faulty entries: the indices that the others have in the file."""

    def locate(self, problem: Problem) -> Problem:
        """The problem with the position of its key, or of the nearest key above that was written.

        Its key counts a list's entries as the loaded recipe does.
        """
        return self.locate_written(replace(problem, key=self._written(problem.key)))

    def locate_written(self, problem: Problem) -> Problem:
        """The same for a key that counts a list's entries as the file does."""
        if problem.where is not None or not self.positions:
            return problem
        key = problem.key
        while key not in self.positions:
            key = key[:-1]
        return replace(problem, where=self.positions[key])

    def _written(self, key: KeyPath) -> KeyPath:
        """The key as the file counts it, before faulty entries were left out."""
        result: KeyPath = ()
        for part in key:
            kept = self.kept.get(result)
            moved = kept is not None and isinstance(part, int) and part < len(kept)
            result = (*result, kept[part] if moved else part)  # type: ignore[index]
        return result


@dataclass(frozen=True)
class Loaded:
    """What came of a recipe file."""

    recipe: Recipe | None
    """Best effort: without what is faulty, so that planning can go on and find more. None when that is hopeless."""
    problems: tuple[Problem, ...]
    """Located, in the order of the files and lines."""
    sources: SourceMap

    def require(self) -> Recipe:
        """The recipe. Raises RequestError with every problem when there is one."""
        if self.problems or self.recipe is None:
            raise RequestError(self.problems)
        return self.recipe


References = Callable[[Recipe], list[Problem]]
"""Looks up what a recipe names outside itself."""


def load_recipe(path: Path, overrides: Sequence[str] = (), *, references: References = check_references) -> Loaded:
    """Read, merge, interpolate and check a recipe.

    `overrides` are `KEY=VALUE`; `references` says what is looked up of all that the recipe names. Raises nothing for a
    user's mistake: it is among the problems of the result.
    """
    folder = Path.cwd()
    files = RecipeFiles()
    parsed, override_problems = parse_overrides(overrides, folder)
    tree = files.read(path, _last_extends(parsed))
    problems = files.problems + override_problems
    order = [*files.order, *map(hide_secret, overrides)]
    if tree is None:
        return Loaded(None, _in_order(problems, order), SourceMap())
    overridden, found = apply_overrides(tree, [override for override in parsed if override.parts != ("extends",)])
    return _check(_with_defaults(overridden, path), problems + found, order, references)


def _last_extends(overrides: Iterable[Override]) -> Node | None:
    return next((o.node for o in reversed(list(overrides)) if o.parts == ("extends",)), None)


def _with_defaults(tree: Table, path: Path) -> Table:
    """The tree with the keys that others may refer to and whose defaults come from outside the recipe."""
    stem = path.stem.replace("${", "$")
    defaults = {"name": stem, "seed": str(Recipe.model_fields["seed"].default), "output_dir": "runs/${name}"}
    entries = dict(tree.entries)
    for name, text in defaults.items():
        if name not in entries:
            node = Scalar(text, name == "seed", tree.source, tree.where)
            entries[name] = Entry(tree.where, node)
    return Table(entries, tree.source, tree.where)


def _check(merged: Table, problems: list[Problem], order: Sequence[str], references: References) -> Loaded:
    # Once before, so that what refers to a secret is not reported as well, and once for what came from variables.
    secrets = list(find_literal_secrets(merged))
    tree, keyed = interpolate(_without(merged, secrets), os.environ)
    secrets += find_literal_secrets(tree)
    tree = _without(tree, secrets)
    method, wrong_method = read_method(tree)
    converter = Converter(partial(home_of, method=method.name if method else None))
    values = converter.section(Recipe, tree, ())
    # Whether `method` is right is said by read_method, in its own words.
    keyed += [*secrets, *wrong_method, *(problem for problem in converter.problems if problem.key != ("method",))]
    recipe = None
    if method:
        keyed += _check_sections(method, tree, values)
        recipe, found = _build({**values, "method": method.name}, tree)
        keyed += found
    sources = SourceMap(dict(positions(tree)), converter.kept)
    located = [sources.locate_written(problem) for problem in keyed]
    if recipe:
        located += map(sources.locate, references(recipe))
    return Loaded(recipe, _in_order(problems + located, order), sources)


def _without(tree: Table, problems: Iterable[Problem]) -> Table:
    result = break_at(tree, {problem.key for problem in problems})
    assert isinstance(result, Table)
    return result


def _check_sections(method: Method, tree: Table, values: dict[str, Any]) -> list[Problem]:
    """What is wrong with the sections as a whole. Takes those that the method has no use for out of `values`."""
    present = {name for name, entry in tree.entries.items() if not _is_nothing(entry.node)}
    problems = [*superfluous_sections(method, present), *missing_sections(method, present)]
    for problem in problems:
        values.pop(str(problem.key[0]), None)
    if values.get("rollouts"):
        problems += refused_backend(method, values["rollouts"])
    problems += [*fraction_out_of_range(values["data"]), *refused_evaluation(method, values["data"])]
    problems += [*empty_names(values), *kl_without_penalty(method, values)]
    problems += check_libraries(method, tree, values)
    problems += contradictions(values, faulty={problem.key for problem in problems})
    return problems


def _is_nothing(node: Node) -> bool:
    """Whether a section says nothing: empty, or null to undo what a base says."""
    if isinstance(node, Broken):
        return False
    if isinstance(node, Scalar):
        return node.value is None
    return node.size == 1


def _build(values: dict[str, Any], tree: Table) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, and what pydantic finds wrong with it that the conversion did not."""
    if "name" not in values:
        values = {"name": "unnamed", **values}
    if "output_dir" not in values:
        values = {"output_dir": f"runs/{values['name']}", **values}
    values["output_dir"] = absolute(values["output_dir"], Path.cwd())
    try:
        return Recipe.model_validate(values), []
    except ValidationError as error:
        return None, [Problem(f"`{dotted(e['loc'])}`: {e['msg']}", key=e["loc"]) for e in error.errors()]


def _in_order(problems: Iterable[Problem], order: Sequence[str]) -> tuple[Problem, ...]:
    """Without repetitions; `order` has the names of the files, as they were read, and of the overrides."""
    rank = {name: number for number, name in reversed(list(enumerate(order)))}

    def place(problem: Problem) -> tuple[int, int, int]:
        where = problem.where or Position("")
        return (rank.get(where.file, len(rank)), where.line, where.column)

    return tuple(sorted(dict.fromkeys(problems), key=place))
