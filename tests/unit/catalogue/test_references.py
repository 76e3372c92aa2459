"""What a recipe names outside itself: files, folders, models, functions, LoRA targets."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import Problem, RequestError
from ptcli.recipe.local_models import BadWeights, read_header
from ptcli.recipe.model import Recipe
from ptcli.recipe.references import check_references, read_model_config, resolve_model_path

SHAPES = {
    "model.embed_tokens.weight": [64, 8],
    "model.layers.0.self_attn.q_proj.weight": [8, 8],
    "model.layers.0.self_attn.v_proj.weight": [8, 8],
    "model.layers.0.mlp.gate_proj.weight": [16, 8],
    "model.layers.0.input_layernorm.weight": [8],
}


def write_weights(path: Path, shapes: dict[str, list[int]], *, cut: int = 0) -> None:
    """A safetensors file of zeros; `cut` bytes are left off its end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end - cut))


def write_model(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    write_weights(folder / "model.safetensors", SHAPES)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def recipe(**sections: Any) -> Recipe:
    """A recipe of what ships, with other sections."""
    base = {
        "name": "test",
        "method": "grpo",
        "output_dir": "runs/test",
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": "builtin:arithmetic"}]},
    }
    return Recipe.model_validate({**base, **sections})


def only(**sections: Any) -> Problem:
    problems = check_references(recipe(**sections))
    assert len(problems) == 1, problems
    assert problems[0].where is None
    return problems[0]


def none(**sections: Any) -> None:
    assert check_references(recipe(**sections)) == []


# --- models ----------------------------------------------------------------------------------------------------------


def test_what_ships_and_what_is_on_the_hub_is_not_questioned() -> None:
    none()
    none(model={"path": "Qwen/Qwen2.5-0.5B-Instruct"}, data={"train": [{"path": "trl-lib/DeepMath-103K"}]})


def test_a_local_model(model: Path) -> None:
    none(model={"path": str(model)}, ref_model={"path": str(model)})


def test_an_unknown_builtin_model() -> None:
    found = only(model={"path": "builtin:tny"})
    assert found.key == ("model", "path")
    assert "builtin:tiny" in found.fix


@pytest.mark.parametrize("section", ["model", "ref_model", "reward_model", "value_model", "teacher"])
def test_a_missing_folder_in_every_model_section(section: str, model: Path) -> None:
    found = only(**{section: {"path": str(model.with_name("modle"))}})
    assert found.key == (section, "path")
    assert "there is no model folder" in found.message
    assert found.fix == f"did you mean {model}?"


def test_a_file_in_the_place_of_a_folder(model: Path) -> None:
    assert "is a file" in only(model={"path": str(model / "config.json")}).message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text(""), "is empty"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a JSON mapping"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not a JSON mapping"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "is not a JSON mapping"),
        (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "is not a safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"xx"), "header is not JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]"), "does not describe"),
        (lambda folder: write_weights(folder / "model.safetensors", SHAPES, cut=5), "5 bytes are missing"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "git lfs pull",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    ],
)
def test_broken_models(change: Any, words: str, model: Path) -> None:
    change(model)
    found = only(model={"path": str(model)})
    assert words in found.message
    assert found.key == ("model", "path")


def test_random_weights_need_none(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert check_references(recipe(model={"path": str(model), "from": "config"})) == []
    (model / "config.json").unlink()
    assert "no config.json" in only(model={"path": str(model), "from": "config"}).message


def test_only_the_trained_model_needs_a_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    none(ref_model={"path": str(model)}, teacher={"path": str(model)})


def test_shards_of_an_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    weights = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(SHAPES)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    for file in ("model-0.safetensors", "model-1.safetensors"):
        write_weights(model / file, {name: SHAPES[name] for name in SHAPES if weights[name] == file})
    none(model={"path": str(model)}, peft={"target_modules": ["q_proj", "v_proj"]})
    (model / "model-1.safetensors").unlink()
    assert "weights are missing: model-1.safetensors" in only(model={"path": str(model)}).message


def test_run_directories_and_their_checkpoints(tmp_path: Path) -> None:
    run = write_model(tmp_path / "run")
    write_model(run / "checkpoint-500")
    none(model={"path": str(run)})
    none(model={"path": f"{run}@500"})
    assert resolve_model_path(f"{run}@500") == str(run / "checkpoint-500")
    found = only(model={"path": f"{run}@400"})
    assert "no checkpoint of step 400" in found.message
    assert found.fix == "it has 500"
    assert "there is no run directory" in only(model={"path": f"{run}s@500"}).message
    (run / "config.json").unlink()
    assert only(model={"path": str(run)}).fix == f"name one of its checkpoints: {run}@500"


def test_a_folder_that_is_really_called_so(tmp_path: Path) -> None:
    model = write_model(tmp_path / "run@500")
    assert resolve_model_path(str(model)) == str(model)
    none(model={"path": str(model)})


def test_resolving_paths(tmp_path: Path) -> None:
    assert resolve_model_path("org/name") == "org/name"
    assert Path(resolve_model_path("builtin:tiny"), "config.json").is_file()
    with pytest.raises(RequestError, match="builtin:tiny"):
        resolve_model_path("builtin:nothing")


def test_model_config_of_folder_builtin_and_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert read_model_config(str(model)) == {"model_type": "llama"}
    assert (read_model_config("builtin:tiny") or {})["model_type"]
    for unknown in ("org/name", "builtin:nothing", str(tmp_path / "nothing")):
        assert read_model_config(unknown) is None

    repository = tmp_path / "home" / "hub" / "models--org--name"
    write_model(repository / "snapshots" / "abc", hidden_size=8)
    assert read_model_config("org/name") is None
    assert read_model_config("org/name", "abc") == {"model_type": "llama", "hidden_size": 8}
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert read_model_config("org/name") == {"model_type": "llama", "hidden_size": 8}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert read_model_config("org/name") is None


def test_headers_of_whatever(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, {"a.weight": [2, 3]})
    assert read_header(path) == {"a.weight": (2, 3)}
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(BadWeights):
        read_header(path)
    with pytest.raises(BadWeights, match="cannot be read"):
        read_header(tmp_path)


# --- chat templates --------------------------------------------------------------------------------------------------


def test_chat_templates(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    none(model={"path": "builtin:tiny", "chat_template": str(template)})
    none(model={"path": "builtin:tiny", "chat_template": "qwen3"})
    found = only(model={"path": "builtin:tiny", "chat_template": "qwen33"})
    assert found.key == ("model", "chat_template")
    assert "did you mean `qwen3" in found.fix
    found = only(model={"path": "builtin:tiny", "chat_template": str(tmp_path / "caht.jinja")})
    assert found.fix == f"did you mean {template}?"
    template.write_text("")
    assert "is empty" in only(model={"path": "builtin:tiny", "chat_template": str(template)}).message


# --- data ------------------------------------------------------------------------------------------------------------


def data(path: object, **entry: Any) -> dict[str, Any]:
    return {"data": {"train": [{"path": str(path), **entry}]}}


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl.gz", "r.arrow"]
)
def test_data_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("rows")
    none(**data(tmp_path / name))
    none(**data(tmp_path / name, split="train[:10]"))
    none(**data(tmp_path))
    none(**data(tmp_path / "*.*"))


def test_an_unknown_builtin_data_set() -> None:
    found = only(**data("builtin:arithmetics"))
    assert found.key == ("data", "train", 0, "path")
    assert found.fix == "did you mean builtin:arithmetic?"


def test_missing_and_useless_data(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    found = only(**data(tmp_path / "rosw.jsonl"))
    assert "there is no file or folder" in found.message
    assert found.fix == f"did you mean {rows}?"
    assert "no file matches" in only(**data(tmp_path / "*.parquet")).message
    rows.write_text("")
    none(**data(rows))  # the check of the data says so, with exit code 1
    rows.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in only(**data(rows)).message


def test_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "rows.jsonl").write_text("x")
    (tmp_path / "rows.csv").write_text("x")
    assert "no suffix of a data file" in only(**data(tmp_path / "notes.txt")).message
    assert "JSON" in only(**data(tmp_path / "notes.txt")).fix
    assert "CSV and JSON" in only(**data(tmp_path / "rows.*")).message


def test_data_folders(tmp_path: Path) -> None:
    assert "is empty" in only(**data(tmp_path)).message
    (tmp_path / "README.md").write_text("x")
    assert "has no data files" in only(**data(tmp_path)).message
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "rows.parquet").write_text("x")
    none(**data(tmp_path))


def test_files_have_one_split(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    found = only(**data(rows, split="test"))
    assert found.key == ("data", "train", 0, "split")
    assert "`test`" in found.message


def test_evaluation_data_too(tmp_path: Path) -> None:
    train = [{"path": "builtin:arithmetic"}]
    gone = {"path": str(tmp_path / "gone.jsonl")}
    assert only(data={"train": train, "eval": [*train, gone]}).key == ("data", "eval", 1, "path")
    assert only(data={"train": train, "eval": {"hard": [gone]}}).key == ("data", "eval", "hard", 0, "path")
    none(data={"train": train, "eval": 0.1})


# --- rewards and callbacks -------------------------------------------------------------------------------------------

REWARDS = """
import os
from json import *
raise RuntimeError("this file must not be run")

def good(completions, **kwargs): ...
async def slow(prompts, completions, **kwargs): ...
def narrow(prompts, completions): ...
def wide(prompts, completions, completion_ids, trainer_state=None, log_extra=None, *, log_metric=None): ...
def positional(completions, /, **kwargs): ...
def unlogged(prompts, completions, completion_ids, trainer_state, answer=None): ...
def no_target(prompts, completions, completion_ids, trainer_state, log_extra, log_metric): ...
@decorated
def wrapped(completions): ...
class Judge:
    def inner(self): ...
class Caller:
    def __init__(self, url, *, retries=3): ...
    async def __call__(self, completions, **kwargs): ...
class Heir(Judge): ...
def make(goal, scale=1.0): ...
def make_default(scale=1.0): ...
built = make()
LIMIT = 3
if os.name:
    def conditional(completions, **kwargs): ...
else:
    fallback = good
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(REWARDS.replace("from json import *\n", ""))
    return path


def reward(use: object, **rest: Any) -> dict[str, Any]:
    return {"rewards": [{"use": str(use), **rest}]}


@pytest.mark.parametrize("method", ["grpo", "rloo", "minillm"])
def test_function_that_takes_all_that_is_passed_by_one_trainer_and_not_by_another(rewards: Path, method: str) -> None:
    none(method="online_dpo", **reward(f"{rewards}:unlogged"))
    assert "does not take `log_extra`" in only(method=method, **reward(f"{rewards}:unlogged")).message


def test_names_that_are_too_long_for_a_file_are_not_there() -> None:
    long = "x" * 300
    none(model={"path": f"{long}/x"})
    assert "no model folder" in only(model={"path": f"/{long}"}).message
    assert "no run directory" in only(model={"path": f"/{long}@5"}).message
    assert "no chat template" in only(model={"path": "builtin:tiny", "chat_template": long}).message
    assert "no file" in only(**reward(f"/{long}.py:f")).message


def test_a_reward_that_is_a_hub_model() -> None:
    none(**reward("gpt2"))


@pytest.mark.parametrize("name", ["good", "slow", "wide", "wrapped", "built", "conditional", "fallback"])
def test_functions_in_a_file_that_is_not_run(rewards: Path, name: str) -> None:
    none(**reward(f"{rewards}:{name}"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("goood", "did you mean `good`?"),
        ("inner", "has no `inner`"),
        ("narrow", "does not take `completion_ids`"),
        ("narrow", "add `**kwargs`"),
        ("positional", "by position only"),
        ("Judge", "a class whose instances cannot be called"),
        ("Caller", "needs the argument `url`"),
        ("make", "does not take `completions`"),
        ("make", "`args: {goal: ...}` here if it makes a reward"),
        ("LIMIT", "is a constant, not a function"),
    ],
)
def test_functions_that_cannot_be_rewards(rewards: Path, name: str, words: str) -> None:
    found = only(**reward(f"{rewards}:{name}"))
    assert found.key == ("rewards", 0, "use")
    assert words in str(found)


def test_a_timeout_beyond_what_a_run_may_wait(rewards: Path) -> None:
    use = f"{rewards}:good"
    none(**reward(use, timeout=599.0))
    none(**reward(use, timeout=900.0), guards={"no_progress_seconds": 2000.0})
    assert only(**reward(use, timeout=600.0)).key == ("rewards", 0, "timeout")
    found = only(**reward(use, timeout=30.0), guards={"no_progress_seconds": 20.0})
    assert found.message == "`rewards.0.timeout` is 30 s, and a run without a step for 20 s is ended"
    assert found.fix == "write a shorter timeout, or `guards: {no_progress_seconds: 90}`"


def test_arguments_that_a_function_does_not_take(rewards: Path) -> None:
    none(**reward(f"{rewards}:good", args={"target": 64}))
    assert only(**reward(f"{rewards}:no_target", args={"target": 64})).key == ("rewards", 0, "args", "target")


@pytest.mark.parametrize(
    ("name", "args"),
    [("make", {"goal": 3}), ("make_default", {}), ("Heir", {}), ("Caller", {"url": "http://judge", "retries": 1})],
)
def test_factories_take_their_arguments(rewards: Path, name: str, args: dict[str, Any]) -> None:
    none(**reward(f"{rewards}:{name}", args=args))
    found = check_references(recipe(**reward(f"{rewards}:{name}", args={**args, "scales": 2})))
    assert [each.key for each in found] == ([] if name == "Heir" else [("rewards", 0, "args", "scales")])
    if name == "make":
        assert found[0].fix == "did you mean `scale`?"


def test_a_star_import_may_bring_anything(tmp_path: Path) -> None:
    path = tmp_path / "star.py"
    path.write_text(REWARDS)
    none(**reward(f"{path}:loads"))


def test_files_that_are_no_python(rewards: Path, tmp_path: Path) -> None:
    found = only(**reward(f"{tmp_path / 'my_reward.py'}:good"))
    assert found.fix == "did you mean my_rewards.py?"
    rewards.write_text("def good(:\n")
    assert f"{rewards}:1 is not valid Python" in only(**reward(f"{rewards}:good")).message
    rewards.write_bytes(b"\x00")
    assert "is not valid Python" in only(**reward(f"{rewards}:good")).message
    assert "name the function" in only(**reward(rewards)).fix


def test_a_function_imported_from_a_sibling(rewards: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.py"
    path.write_text("from my_rewards import narrow as short, good\nfrom nowhere import unknown\n")
    none(**reward(f"{path}:good"))
    none(**reward(f"{path}:unknown"))
    assert "does not take" in only(**reward(f"{path}:short")).message


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("trl.rewards:acuracy_reward", "did you mean `accuracy_reward`?"),
        ("trl.reward:accuracy_reward", "did you mean trl.rewards?"),
        ("no_such_package.rewards:x", "there is no module no_such_package"),
        ("trl.rewards.accuracy_reward", "write `trl.rewards:accuracy_reward`"),
        ("trl.rewards:get_soft_overlong_punishment", "does not take `completions`"),
        ("trl.rewards:get_soft_overlong_punishment", "`args: {max_completion_len: ...}`"),
        ("ptcli.builtin.rewards:exact_mach", "did you mean `exact_match`?"),
    ],
)
def test_functions_in_packages(use: str, words: str) -> None:
    assert words in str(only(**reward(use)))


@pytest.mark.parametrize(
    "use", ["trl.rewards:accuracy_reward", "ptcli.builtin.rewards:exact_match", "math:sqrt", "os.path:exists"]
)
def test_functions_in_packages_that_are_there(use: str) -> None:
    problems = check_references(recipe(**reward(use)))
    assert not [p for p in problems if "has no" in p.message or "there is no" in p.message]


def test_reward_models(model: Path) -> None:
    none(**reward(model))
    none(**reward("org/reward-model"))
    assert "no model folder" in only(**reward(model.with_name("gone"))).message


def test_nothing_is_imported_to_find_it() -> None:
    code = (
        "import sys; from ptcli.recipe.code import find_object;"
        "assert find_object('trl.rewards:accuracy_reward').node.name == 'accuracy_reward';"
        "assert not {'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_callbacks(tmp_path: Path) -> None:
    path = tmp_path / "callbacks.py"
    path.write_text("class Stop: ...\ndef halt(): ...\n")
    none(callbacks=[{"use": f"{path}:Stop"}, {"use": "transformers:EarlyStoppingCallback"}])
    assert "is not a class" in only(callbacks=[{"use": f"{path}:halt"}]).message
    found = only(callbacks=[{"use": f"{path}:Stap"}])
    assert (found.key, found.fix) == (("callbacks", 0, "use"), "did you mean `Stop`?")
    assert "does not name a class" in only(callbacks=[{"use": "Stop"}]).message


# --- LoRA targets ----------------------------------------------------------------------------------------------------


def targets(model: Path, value: Any) -> dict[str, Any]:
    return {"model": {"path": str(model)}, "peft": {"target_modules": value}}


@pytest.mark.parametrize(
    "value",
    [
        "all-linear",
        ["q_proj", "v_proj"],
        ["self_attn.q_proj", "model.layers.0.mlp.gate_proj"],
        ["embed_tokens", "lm_head"],
        r".*\.(q|v)_proj",
        r"model\.layers\.\d+\.mlp\..*",
    ],
)
def test_targets_that_match(model: Path, value: Any) -> None:
    none(**targets(model, value))


@pytest.mark.parametrize(
    ("value", "key", "words"),
    [
        (["q_proj", "v_porj"], 1, "did you mean `v_proj`?"),
        (["query_key_value"], 0, "the model has embed_tokens, gate_proj, lm_head, q_proj, v_proj"),
        (["proj"], 0, "no module of the model is called `proj`"),
        (["input_layernorm"], 0, "is not a linear layer"),
        ("q_proj", None, "write [q_proj]"),
        (r".*\.query", None, "matches no module"),
        ("(q_proj", None, "is not a regular expression"),
    ],
)
def test_targets_that_do_not(model: Path, value: Any, key: int | None, words: str) -> None:
    found = only(**targets(model, value))
    assert found.key == ("peft", "target_modules", *([] if key is None else [key]))
    assert words in str(found)


def test_targets_of_an_untied_head(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    assert only(**targets(model, ["lm_head"])).key == ("peft", "target_modules", 0)


def test_a_model_of_text_and_images_has_other_paths_in_memory(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "vision_config": {}}))
    none(**targets(model, ["q_proj", "language_model.layers.0.self_attn.q_proj", "visual.blocks.0.attn.qkv"]))
    assert only(**targets(model, ["q_porj"])).fix == "did you mean `q_proj`?"


def test_targets_of_hub_models_are_not_known() -> None:
    none(model={"path": "org/name"}, peft={"target_modules": ["anything"]})


def test_targets_of_the_shipped_model() -> None:
    none(peft={"target_modules": ["q_proj", "v_proj"]})
    assert only(peft={"target_modules": ["q_porj"]}).fix == "did you mean `q_proj`?"


def test_everything_wrong_comes_at_once(model: Path, rewards: Path) -> None:
    (model / "tokenizer.json").unlink()
    problems = check_references(
        recipe(
            **targets(model, ["q_porj"]),
            **reward(f"{rewards}:goood"),
            **data("/gone.jsonl"),
            teacher={"path": "/gone"},
            callbacks=[{"use": "/gone.py:X"}],
        )
    )
    assert len(problems) == 6
