"""Chat templates: what does not parse, what cannot render a chat, and that all that TRL ships are fine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptcli.recipe.rendering import find_fault, find_syntax_fault
from ptcli.recipe.templates import check_own_template, check_template, read_named_template, read_own_template
from ptcli.recipe.templates import shipped_templates as shipped

GOOD = "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] }}\n{% endfor %}"
BROKEN = "{% for m in messages %}\n{{ m.content }\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "line", "words"),
    [
        (BROKEN, 2, "does not parse: unexpected '}'"),
        ("a\n{{ messages | no_such }}", 2, "does not parse: No filter named 'no_such'"),
        ("{% for m in messages %}\n{{ m.content }}", 2, "does not parse: Unexpected end of template"),
        ("{% generation %}\n{{ messages[0].content }}", 2, "'endgeneration'"),
        ("\n{{ raise_exception('tools only') }}", 2, "cannot render a user's message: tools only"),
        ("\n\n{{ messages[0].content + 3 }}", 3, "cannot render a user's message: can only concatenate"),
        ("{{ messages.__class__.mro() }}", 1, "is unsafe"),
        ("{% for m in messages %}{{ m.contnt }}{% endfor %}", None, "leaves out the content of a user's message"),
        ("{{ messages[0].content }}", None, "leaves out the content of an assistant's message"),
    ],
)
def test_faults_are_found_with_their_line(template: str, line: int | None, words: str) -> None:
    fault = find_fault(template)
    assert fault is not None
    assert words in fault.message
    assert fault.line == line


@pytest.mark.parametrize(
    "template",
    [
        GOOD,
        "{%- for m in messages -%}{% if not m %}{% continue %}{% endif %}{{ m | tojson(indent=2) }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ bos_token + strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system message first') }}{% endif %}" + GOOD,
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
    ],
)
def test_what_transformers_renders_is_no_fault(template: str) -> None:
    assert find_fault(template) is None


def test_every_template_that_trl_ships_is_fine() -> None:
    texts = {name: template.text for name in shipped() if (template := read_named_template(name))}
    assert len(texts) >= 60
    assert {name: fault for name, text in texts.items() if (fault := find_fault(text))} == {}


def test_training_templates_mark_the_answers() -> None:
    marked = {name for name in shipped() if (template := read_named_template(name)) and template.marks_answers}
    assert {name for name in shipped() if name.endswith("_training")} <= marked
    assert "qwen2_5" not in marked


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(BROKEN)
    (problem,) = check_template(str(path), ("model", "chat_template"))
    assert problem.message == f"the chat template {path}:2 does not parse: unexpected '}}'"
    path.write_text(GOOD)
    assert check_template(str(path), ("model", "chat_template")) == []
    path.write_bytes(b"\xff\xfe{{")
    assert "is not UTF-8 text" in check_template(str(path), ("model", "chat_template"))[0].message


def test_a_models_own_template_is_found_where_transformers_looks(tmp_path: Path) -> None:
    assert read_own_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": BROKEN}]})
    )
    (problem,) = check_own_template(tmp_path, ("model", "path"))
    assert f"{config} does not parse: unexpected '}}' (its line 2)" in problem.message
    config.write_text(json.dumps({"chat_template": GOOD}))
    assert check_own_template(tmp_path, ("model", "path")) == []
    (tmp_path / "chat_template.jinja").write_text(BROKEN)  # wins over the older place
    (problem,) = check_own_template(tmp_path, ("model", "path"))
    assert f"{tmp_path / 'chat_template.jinja'}:2 does not parse" in problem.message


def test_only_the_syntax_of_a_models_own_template_counts(tmp_path: Path) -> None:
    """Its rows may be of the shape it wants."""
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('tools only') }}")
    assert check_own_template(tmp_path, ("model", "path")) == []
    assert find_syntax_fault(BROKEN) is not None
