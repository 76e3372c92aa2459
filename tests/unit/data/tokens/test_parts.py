"""The parts of the token checks that need no tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ptcli.data.model import Hit
from ptcli.data.tokens import TokenTally, merge, render_show
from ptcli.data.tokens.encoded import Encoded, Sample, Unreadable, cut_sample
from ptcli.data.tokens.encoder import common_prefix, extract_prompt, is_chat, same_kind
from ptcli.data.tokens.marked import render_marked
from ptcli.data.tokens.probes import find_dropped
from ptcli.data.tokens.training_templates import training_template
from ptcli.methods import METHODS
from ptcli.recipe.rendering import compile_template
from ptcli.recipe.templates import read_named_template

USER = {"role": "user", "content": "How many?"}


class Letters:
    """A tokenizer with a token for every character."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(map(chr, ids))


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize("limit", [0, 1, 3, 4, 5, 9, None])
@pytest.mark.parametrize("mask", [None, [False, True, False, True, True]])
def test_what_a_limit_leaves(keep, limit, mask):
    ids = [10, 11, 12, 13, 14]
    flags = mask or [False, False, True, True, True]
    kept = slice(None, limit) if keep == "start" else slice(-limit if limit is not None else None, None)
    sample = cut_sample(Sample(ids, 2, mask=mask), limit, keep=keep)
    if limit == 0 and keep == "end":
        assert sample.ids == ids  # as TRL's own slice
        return
    assert sample.ids == ids[kept]
    assert sample.flags == flags[kept]
    assert sample.trained == sum(flags[kept])
    assert sample.lost == sum(flags) - sum(flags[kept])
    assert sample.length == 5
    assert sample.ids[: sample.cut_at] + sample.cut + sample.ids[sample.cut_at :] == ids


def test_a_row_shown():
    cut = cut_sample(Sample(letters("2+2=4.\x1b"), 4, "chosen"), 6)
    shown = render_show(Encoded((cut,), "too long"), Letters(), colour=False)
    assert (
        shown == "(left out by the trainer: too long)\n-- chosen: 6 tokens, 2 trained, 1 cut away\n2+2=[[4.]]{{\\x1b}}"
    )
    masked = Sample(letters("abc"), 0, mask=[True, False, True])
    assert render_show(Encoded((masked,)), Letters(), colour=False).endswith("[[a]]b[[c]]")
    assert "\033[1;32ma\033[0m" in render_show(Encoded((masked,)), Letters(), colour=True)


def test_prompts_are_extracted_as_trl_does():
    assert extract_prompt("It is 4.", "It is 5.") == ("It is", " 4.", " 5.")
    assert extract_prompt("ab", "ab") == ("a", "b", "b")
    answers = [[USER, {"role": "assistant", "content": text}] for text in "45"]
    assert extract_prompt(*answers) == ([USER], answers[0][1:], answers[1][1:])
    with pytest.raises(Unreadable):
        extract_prompt("", "x")


@pytest.mark.parametrize(("first", "second"), [("abc", "abd"), ("", "x"), ("abc", "abc"), ("abcd", "ab"), ("x", "y")])
def test_common_prefix(first, second):
    prefix = common_prefix(first, second)
    assert first.startswith(prefix)
    assert second.startswith(prefix)
    assert first[len(prefix) : len(prefix) + 1] != second[len(prefix) : len(prefix) + 1] or first == second


def test_kinds_of_values():
    assert is_chat([USER])
    assert not any(map(is_chat, ([], "x", [1], [{"from": "user"}], None)))
    assert same_kind([USER], [USER]) is True
    assert same_kind("a", "b") is False
    for mixed in (("a", [USER]), ("a", None), ([USER], []), ([], [])):
        with pytest.raises(Unreadable):
            same_kind(*mixed)


def test_marked_parts_are_where_they_say():
    template = "{% for m in messages %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endfor %}"
    text, places = render_marked(template, {"messages": [{"content": "one"}, {"content": "three"}]})
    assert text == "<one><three>"
    assert [text[start:end] for start, end in places] == ["one", "three"]


def test_the_quick_sandbox_is_one():
    held = {"messages": [USER], "f": {}}
    assert compile_template("{{ messages[0].content }} {{ messages[0].nothing }}").render(held) == "How many? "
    assert compile_template("{{ messages[0].items() | list | length }}").render(held) == "2"
    assert compile_template("{{ 'x'.upper() }} {{ 'a{}'.format(1) }}").render(held) == "X a1"
    loop = "{% set n = namespace(v=1) %}{% for m in messages %}{% set n.v = loop.index %}{{ n.v }}{% endfor %}"
    assert compile_template(loop).render(held) == "1"


ATTACKS = ("''.__class__.__mro__", "f.update(a=1)", "messages.append(1)", "'{0.__class__}'.format(f)", "f.__init__")


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_quick_sandbox_allows_no_more_than_its_own(attack):
    template, outcomes = "{{ " + attack + " }}", []
    own = ImmutableSandboxedEnvironment().from_string(template)
    for each in (own, compile_template(template)):
        try:
            outcomes.append(each.render(messages=[USER], f={}))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    assert outcomes[0] == outcomes[1]
    assert "class" not in outcomes[0] or "unsafe" in outcomes[0]


def test_templates_that_trl_knows_a_marked_version_of():
    own, marked = read_named_template("qwen3"), read_named_template("qwen3_training")
    assert training_template(own.text) == marked.text
    assert training_template(marked.text) == marked.text
    assert training_template("{{ messages }}") is None


def test_messages_that_two_chats_share_are_looked_for_once():
    answers = [{"role": "assistant", "content": text} for text in ("four", "five")]
    chats = [([USER, answer], answer["content"]) for answer in answers]
    assert [variant for variant, _ in find_dropped(chats, None)] == ["user"]


def test_tallies_count_a_rule_once_a_row_and_move_rows():
    first, later = TokenTally(rows=10), TokenTally(rows=8)
    hit = Hit("truncation", "warning", "long")
    for row in (*range(7), 6, 6):
        first.hit(hit, row)
        later.hit(hit, row)
    later.measure(70, 3)
    merge(first, later, 10)
    (found,) = first.hits.values()
    assert (found.count, found.rows) == (14, [0, 1, 2, 3, 4])
    assert (first.rows, first.longest, first.longest_row, first.lengths) == (18, 70, 13, {128: 1})


def test_every_method_has_an_encoder():
    from ptcli.data.tokens.check import encoder_class

    assert all(encoder_class(method) for method in METHODS.values())
