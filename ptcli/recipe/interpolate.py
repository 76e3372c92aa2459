"""`${key}` and `${oc.env:NAME,default}`, in OmegaConf's grammar, and none of its other resolvers.

The usual forms are read by a pattern, which saves importing OmegaConf's parser, a good part of a dry run's time;
everything else, such as escapes and nesting, goes through OmegaConf's own grammar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ptcli.errors import KeyPath, Position, Problem
from ptcli.recipe.secrets import REFERENCE, is_secret_name
from ptcli.recipe.suggest import nearest, quote_nearest
from ptcli.recipe.tree import MAX_NODES, Broken, Entry, Items, Node, Scalar, Source, Table, broken, describe, dotted

MAX_TEXT = 1_000_000
"""Characters of all texts that have references, once these are written out."""
MAX_CHAIN = 30
"""References that lead to one another."""

_SIMPLE = re.compile(
    r"\$\{(?:oc\.env:(?P<env>[A-Za-z_]\w*)(?:,(?P<default>[\w./:@+-]+))?|(?P<key>[A-Za-z_]\w*(?:\.\w+)*))\}"
)
_VARIABLE = Source("", Path())
"""Of a value from the environment, until it is known who asked for it."""
_SAID = ("", "")
"""For a reference to something that has a problem of its own: that one is enough."""
_ALLOWED = "write ${key.of.the.recipe} or ${oc.env:NAME,default}"


class _Refused(Exception):
    """Carries why a text cannot be resolved, and the fix."""


class _Found(str):
    """What a reference stands for: its text in a longer text, its node when it is all there is."""

    node: Node


def interpolate(root: Table, environ: Mapping[str, str]) -> tuple[Table, list[Problem]]:
    """The tree with every reference replaced by what it refers to; a text that cannot be resolved is broken.

    A problem's key is the key of the text at fault.
    """
    resolver = _Resolver(root, environ)
    node = resolver.resolve(root, ())
    assert isinstance(node, Table)
    return node, resolver.problems


class _Resolver:
    """State of one pass: what is resolved already, and what is being resolved."""

    def __init__(self, root: Table, environ: Mapping[str, str]):
        self.root = root
        self.environ = environ
        self.problems: list[Problem] = []
        self.done: dict[int, Node] = {}
        self.active: dict[int, KeyPath] = {}
        self.depth = 0
        self.nodes = 0
        self.characters = 0

    def resolve(self, node: Node, key: KeyPath) -> Node:
        """The node without references. Raises _Refused when it is being resolved already."""
        if id(node) in self.done:
            return self.done[id(node)]
        if id(node) in self.active:
            raise _Refused(f"`{dotted(self.active[id(node)])}` refers to itself", self.circle(node))
        self.active[id(node)] = key
        try:
            result = self.resolve_children(node, key)
        finally:
            del self.active[id(node)]
        self.done[id(node)] = result
        # A result that is referred to is not resolved once more: what a variable holds is text, whatever it looks like.
        self.done[id(result)] = result
        return result

    def circle(self, node: Node) -> str:
        """The way from a node back to itself, when it leads through others."""
        ids = list(self.active)
        keys = [self.active[i] for i in ids[ids.index(id(node)) :]]
        links = [key for key, below in zip(keys, [*keys[1:], None], strict=True) if below is None or below[:-1] != key]
        return f"the circle is {' -> '.join(map(dotted, [*links, links[0]]))}" if len(links) > 1 else ""

    def resolve_children(self, node: Node, key: KeyPath) -> Node:
        if isinstance(node, Scalar):
            return self.resolve_text(node, key) if "${" in node.text else node
        if isinstance(node, Items):
            children = tuple(self.resolve(child, (*key, index)) for index, child in enumerate(node.nodes))
            return node if children == node.nodes else Items(children, node.source, node.where)
        entries = {
            name: Entry(entry.where, self.resolve(entry.node, (*key, name))) for name, entry in node.entries.items()
        }
        return Table(entries, node.source, node.where)

    def resolve_text(self, node: Scalar, key: KeyPath) -> Node:
        try:
            result = self.evaluate(node)
            self.refuse_huge(result)
            return result
        except _Refused as error:
            message, fix = error.args
            if message:
                self.problems.append(Problem(message, fix, key=key))
            return broken(node)

    def refuse_huge(self, result: Node) -> None:
        self.nodes += result.size
        self.characters += len(result.text) if isinstance(result, Scalar) else 0
        if self.nodes > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES} values once references are written out", "")
        if self.characters > MAX_TEXT:
            raise _Refused(f"more than {MAX_TEXT} characters once references are written out", "")

    def evaluate(self, node: Scalar) -> Node:
        found = _SIMPLE.fullmatch(node.text)
        result = self.simple(found).node if found else self.longer_text(node)
        if not isinstance(result, Scalar):
            return result
        # A referenced scalar is said here, but a path in it stays relative to the file that it was written in.
        source = node.source if result.source is _VARIABLE else result.source
        return replace(result, source=source, where=node.where)

    def longer_text(self, node: Scalar) -> Node:
        text = node.text
        if "\\" not in text and text.count("${") == len(_SIMPLE.findall(text)):
            result = _SIMPLE.sub(lambda found: _as_text(self.simple(found)), text)
        else:
            value = self.full_grammar(text)
            if isinstance(value, _Found):
                return value.node
            result = str(value)
        return replace(node, text=result, plain=False)

    def simple(self, found: re.Match[str]) -> _Found:
        if found["env"]:
            return self.variable(found["env"], found["default"])
        return self.reference(tuple(found["key"].split(".")))

    def full_grammar(self, text: str) -> Any:
        from omegaconf.errors import OmegaConfBaseException
        from omegaconf.grammar_parser import parse
        from omegaconf.grammar_visitor import GrammarVisitor

        seen: list[_Found] = []

        def on_reference(key: Any, _memo: object) -> Any:
            if key.relative_dots:
                raise _Refused(f"a reference counts from the top of the recipe, `${{{key.raw}}}` does not", "")
            seen.append(self.reference(tuple(map(str, key.parts))))
            return seen[-1]

        def on_resolver(*, name: str, args: tuple[Any, ...], args_str: tuple[str, ...]) -> _Found:
            seen.append(self.resolver(name, args, args_str))
            return seen[-1]

        try:
            value = GrammarVisitor(on_reference, on_resolver, None).visit(parse(text))
        except _Refused:
            raise
        except (OmegaConfBaseException, ValueError, RecursionError):
            raise _Refused(
                "`${` starts a reference that cannot be read", f"{_ALLOWED}; `\\${{` stands for the text itself"
            ) from None
        if not isinstance(value, _Found):
            for found in seen:
                _as_text(found)
        return value

    def resolver(self, name: str, args: tuple[Any, ...], texts: tuple[str, ...]) -> _Found:
        if name != "oc.env":
            raise _Refused(f"`${{{name}:...}}` is not supported", _ALLOWED)
        if len(args) not in (1, 2):
            raise _Refused("`${oc.env:...}` takes a variable's name and, after a comma, a default", "")
        default = None
        if len(args) == 2:
            # What was written, not what OmegaConf's own rules make of it, so that `1e-5` is what it is elsewhere.
            default = str(args[1]) if re.search(r"[\"'$\\{}\[\]]", texts[1]) else texts[1]
        return self.variable(str(args[0]), default)

    def variable(self, name: str, default: str | None) -> _Found:
        value = self.environ.get(name)
        if value is None and default is None:
            close = quote_nearest(name, self.environ)
            fix = f"set it, or give a default: ${{oc.env:{name},...}}"
            raise _Refused(f"the environment variable {name} is not set", f"{close}, or {fix}" if close else fix)
        if is_secret_name(name):
            return _found(_text_node(_keep(name, default), plain=False))
        text = default if value is None else value
        assert text is not None
        if not text.isprintable() and not text.replace("\n", " ").replace("\t", " ").isprintable():
            raise _Refused(f"the environment variable {name} holds characters that are no text", "")
        return _found(_text_node(text, plain=text != ""))

    def reference(self, parts: tuple[str, ...]) -> _Found:
        node: Node = self.root
        key: KeyPath = ()
        for part in parts:
            node, key = self.step(node, key, part)
        if self.depth >= MAX_CHAIN:
            raise _Refused(f"too many references that lead to one another, more than {MAX_CHAIN}", "")
        self.depth += 1
        try:
            node = self.resolve(node, key)
        finally:
            self.depth -= 1
        if isinstance(node, Broken):
            raise _Refused(*_SAID)
        return _found(node)

    def step(self, node: Node, key: KeyPath, part: str) -> tuple[Node, KeyPath]:
        """One part further on the way to a referenced key."""
        if isinstance(node, Scalar) and "${" in node.text:
            node = self.resolve(node, key)
        name = dotted((*key, part))
        if isinstance(node, Items) and part.isdecimal() and int(part) < len(node.nodes):
            return node.nodes[int(part)], (*key, int(part))
        if isinstance(node, Table):
            if part in node.entries:
                return node.entries[part].node, (*key, part)
            close = nearest(part, node.entries)
            fix = f"did you mean `${{{dotted((*key, close))}}}`?" if close else ""
            raise _Refused(f"`{name}` is not set in the recipe", fix)
        raise _Refused(f"`{name}` is not set in the recipe, `{dotted(key)}` is {describe(node)}", "")


def _keep(name: str, default: str | None) -> str:
    """The text that stands for a secret until `reveal`."""
    text = f"${{oc.env:{name}}}" if default is None else f"${{oc.env:{name},{default}}}"
    if not REFERENCE.fullmatch(text):
        raise _Refused(f"the default of the secret {name} must be one plain word", "leave it out")
    return text


def _text_node(text: str, *, plain: bool) -> Scalar:
    return Scalar(text, plain, _VARIABLE, Position(""))


def _found(node: Node) -> _Found:
    found = _Found(node.text if isinstance(node, Scalar) else "")
    found.node = node
    return found


def _as_text(found: _Found) -> str:
    if not isinstance(found.node, Scalar):
        _refuse_inside_text(found.node)
    return str(found)


def _refuse_inside_text(node: Node) -> NoReturn:
    raise _Refused(f"a reference inside a longer text must be to a single value, not to {describe(node)}", "")
