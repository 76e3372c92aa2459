"""Chat templates as transformers compiles and renders them (`_compile_jinja_template`), without transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Chat = list[dict[str, Any]]

_TOKENS = MappingProxyType({"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"})
"""What stands for the special tokens of a tokenizer that is not known."""
_QUESTION, _ANSWER = "seventeen", "thirteen"
"""Words that no template writes by itself."""


@dataclass(frozen=True)
class Fault:
    """Why a chat template cannot be used."""

    message: str
    line: int | None = None
    """Line of the template, from 1; None when it is not about one."""


class _GenerationTag(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, around what an assistant says: rendered as its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return caller()


_TEXT_METHODS = frozenset(name for name in dir(str) if name[0] != "_") - {"format", "format_map"}
_DICT_METHODS = frozenset(dir(dict))
_PLAIN = (str, int, bool, float, list, dict, type(None))


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, which takes a short way to what it allows anyway: half of the time of the usual templates."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _DICT_METHODS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is str and attribute in _TEXT_METHODS:
            return getattr(obj, attribute)
        if (kind is Namespace or kind is LoopContext) and attribute[:1] != "_":
            value = getattr(obj, attribute, self)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)


def find_syntax_fault(template: str) -> Fault | None:
    """What is wrong with the template's text; None when it compiles."""
    try:
        compile_template(template)
    except TemplateSyntaxError as error:
        return Fault(f"does not parse: {error.message}", error.lineno)
    return None


def find_fault(template: str, tokens: Mapping[str, str] = _TOKENS) -> Fault | None:
    """What is wrong with the template: its text, or what it makes of the simplest chats; None when nothing is.

    A chat that it cannot render is tried with a system message before it, and with its contents in parts, as templates
    of vision-language models want them. `tokens` are the tokenizer's special tokens (`eos_token` and the like).
    """
    fault = find_syntax_fault(template)
    if fault:
        return fault
    user: dict[str, Any] = {"role": "user", "content": _QUESTION}
    chat: Chat = [user, {"role": "assistant", "content": _ANSWER}]
    return _find_fault_with([user], "a user's message", _QUESTION, template, tokens) or _find_fault_with(
        chat, "an assistant's message", _ANSWER, template, tokens
    )


def _find_fault_with(chat: Chat, what: str, word: str, template: str, tokens: Mapping[str, str]) -> Fault | None:
    faults = [_try(each, what, word, template, tokens) for each in _variants(chat)]
    return None if None in faults else faults[0]


def _variants(chat: Chat) -> Iterator[Chat]:
    yield chat
    yield [{"role": "system", "content": "Be brief."}, *chat]
    yield [each | {"content": [{"type": "text", "text": each["content"]}]} for each in chat]


def _try(chat: Chat, what: str, word: str, template: str, tokens: Mapping[str, str]) -> Fault | None:
    arguments = {**_TOKENS, **tokens, "messages": chat, "tools": None, "documents": None}
    arguments["add_generation_prompt"] = chat[-1]["role"] == "user"
    try:
        text = compile_template(template).render(arguments)
    except Exception as error:  # a template is somebody's program: it can fail in any way
        why = " ".join(str(error).split()) or type(error).__name__
        return Fault(f"cannot render {what}: {why}", _line_of(error))
    return None if word in text else Fault(f"leaves out the content of {what}")


def _line_of(error: BaseException) -> int | None:
    """The line of the template at which rendering it failed: jinja2 writes it into the traceback."""
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<template>":
            line = step.tb_lineno
        step = step.tb_next
    return line


@lru_cache(maxsize=8)
def compile_template(template: str) -> Template:
    """The template, ready to render. Raises TemplateSyntaxError."""
    return template_environment(_GenerationTag).from_string(template)


def render_text(template: Template, arguments: Mapping[str, Any]) -> str:
    """What `template.render(arguments)` gives, without making a context of all globals anew each time.

    Raises whatever the template raises.
    """
    context = template.new_context({**template.environment.globals, **arguments}, shared=True)
    return "".join(template.root_render_func(context))


@cache
def template_environment(generation: type[Extension]) -> ImmutableSandboxedEnvironment:
    """transformers' environment; `generation` is what it makes of the generation tag."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
