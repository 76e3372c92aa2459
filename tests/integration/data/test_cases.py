"""The shipped cases, each with the verdict it must get: data files beside the checkout, in ../shared/cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptcli.builtin import MODEL
from ptcli.data.check import check_recipe
from ptcli.methods import METHODS

CASES = Path(__file__).parents[4] / "shared" / "cases"
NAMES = {"odpo": "online_dpo", "nash": "nash_md", "distill": "distillation"}
"""The index's short names of methods."""
BY_COMMAND = 15
"""Cases that also go through the command line."""

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the shipped cases (../shared/cases) are not there")


def _index() -> list[dict[str, Any]]:
    return json.loads((CASES / "index.json").read_text()) if CASES.is_dir() else []


INDEX = _index()


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tokenizer variant, with the config of the model that the index describes."""
    root = tmp_path_factory.mktemp("tokenizers")

    def build(variant: str) -> Path:
        folder = root / (variant or "base")
        if not folder.exists():
            shutil.copytree(CASES / "tokenizers/base", folder, copy_function=shutil.copyfile)
            config = {"model_type": "llama", "vocab_size": 400, "max_position_embeddings": 1024}
            (folder / "config.json").write_text(json.dumps(config))
            _change(folder, variant)
        return folder

    return build


def _change(folder: Path, variant: str) -> None:
    template = folder / "chat_template.jinja"
    if variant == "lenient":
        text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        template.write_text(text + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    elif variant == "think":
        opened = "'<|im_start|>assistant\n<think>\n'"
        template.write_text(template.read_text().replace("'<|im_start|>assistant\n'", opened))
    elif variant == "bos":
        _add_bos(folder, before_text=True)
    elif variant == "bostemplate":
        _add_bos(folder, before_text=True)
        template.write_text("{{ bos_token }}" + template.read_text())
    elif variant == "notemplate":
        template.unlink()
    elif variant == "nopad":
        _edit(folder / "tokenizer_config.json", lambda config: config.pop("pad_token"))
    elif variant:
        import trl

        shutil.copyfile(Path(trl.__file__).parent / "chat_templates" / f"{variant}.jinja", template)


def _add_bos(folder: Path, *, before_text: bool) -> None:
    def add(tokenizer: dict[str, Any]) -> None:
        number = 1 + max(*tokenizer["model"]["vocab"].values(), *(each["id"] for each in tokenizer["added_tokens"]))
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": number, "content": "<s>"})
        if before_text:
            first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
            tokenizer["post_processor"]["single"].insert(0, first)
            tokenizer["post_processor"]["special_tokens"] = {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}}

    _edit(folder / "tokenizer.json", add)
    _edit(folder / "tokenizer_config.json", lambda config: config.update(bos_token="<s>"))


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.fixture(scope="session")
def recipe_of(tokenizers: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the recipe of a case; its path."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "rewards.py").write_text(
        "def plain(completions, **kwargs):\n    return [0.0] * len(completions)\n\n\n"
        "def needs_answer(completions, answer, **kwargs):\n    return [0.0] * len(completions)\n"
    )

    def write(case: dict[str, Any]) -> Path:
        arguments = dict(case.get("args") or {})
        columns = arguments.pop("reward_columns", None)
        assert columns in (None, ["answer"])
        method = METHODS[NAMES.get(case["method"], case["method"])]
        training = {"per_device_train_batch_size": 4, **arguments}
        if method.smallest_group and method.batching == "generation":
            training.setdefault("num_generations", 2)
        recipe: dict[str, Any] = {
            "method": method.name,
            "model": {"path": str(tokenizers(case.get("tok") or ""))},
            "data": {"train": [{"path": str(CASES / case["file"])}]},
            "training": training,
            "launch": {"device": "cpu"},
        }
        for section in method.needs:
            recipe[section] = {"path": str(MODEL)}
        if "rewards" in method.needs:
            recipe["rewards"] = [{"use": f"{folder}/rewards.py:{'needs_answer' if columns else 'plain'}"}]
        path = folder / f"{Path(case['file']).stem}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write


@pytest.mark.parametrize("case", INDEX, ids=lambda case: Path(case["file"]).stem)
def test_verdict(case: dict[str, Any], recipe_of: Callable[..., Path]) -> None:
    report = check_recipe(recipe_of(case))
    found = [(finding.severity, finding.rule) for finding in report.findings]
    errors = [rule for severity, rule in found if severity == "error"]
    if case["expected"] == "error":
        assert case["rule"] in errors
    elif case["expected"] == "warning":
        assert not errors
        assert ("warning", case["rule"]) in found
    else:
        assert not errors


def test_all_are_there() -> None:
    assert len(INDEX) == len({case["file"] for case in INDEX}) == 155


@pytest.mark.parametrize("case", INDEX[:: max(len(INDEX) // BY_COMMAND, 1)][:BY_COMMAND], ids=lambda case: case["file"])
def test_verdict_of_the_command(
    case: dict[str, Any], recipe_of: Callable[..., Path], ptcli_process: Callable[..., Any]
) -> None:
    result = ptcli_process("validate-data", recipe_of(case), "--json")
    report = json.loads(result.out)
    found = {(finding["severity"], finding["rule"]) for finding in report["findings"]}
    assert result.code == (1 if case["expected"] == "error" else 0)
    assert report["ok"] == (result.code == 0)
    if case["expected"] != "ok":
        assert (case["expected"], case["rule"]) in found
