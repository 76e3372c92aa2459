"""Chat templates with the places of what they mark as the assistant's, between {% generation %} and its end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes, pass_eval_context
from jinja2.ext import Extension
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Macro

from ptcli.recipe.rendering import template_environment

_blocks: list[str] = []
"""What the template being rendered has written so far."""
_places: list[tuple[int, int]] = []
"""Character ranges of the marked parts in it."""


class _PlacedGenerationTag(Extension):
    """transformers' `AssistantTracker`: a marked part begins where what was written so far ends."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _content(self, context: EvalContext, caller: Macro) -> str:
        content = caller()
        start = len("".join(_blocks))
        _places.append((start, start + len(content)))
        return content


def render_marked(template: str, arguments: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the character ranges (start, end) of its marked parts. Raises whatever the template raises."""
    compiled = _compile(template)
    _blocks.clear()
    _places.clear()
    for block in compiled.generate(arguments):
        _blocks.append(block)
    return "".join(_blocks), list(_places)


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    return template_environment(_PlacedGenerationTag).from_string(template)
