"""Adapters in a recipe: paths that are adapters, and what `peft` asks of a local model. Headers only, no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ptcli.errors import Problem
from ptcli.methods import METHODS
from ptcli.recipe.adapters import UNTRAINABLE, known_from_files, tied_embeddings
from ptcli.recipe.catalogue import peft_types
from ptcli.recipe.local_models import base_model_path, read_model_config, resolve_model_path
from ptcli.recipe.model import Recipe
from ptcli.recipe.references import check_references

LORA = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 64),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (128, 4),
}
"""Tensors that fit the shipped model: its q_proj is (128, 64)."""
SCORE = {"base_model.model.score.weight": (1, 64)}


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of float32 zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]] = LORA, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    base = {
        "base_model_name_or_path": resolve_model_path("builtin:tiny"),
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(base | config))
    write_header(folder / "adapter_model.safetensors", shapes)
    return folder


def problems(method: str = "sft", **sections: Any) -> list[Problem]:
    return check_references(recipe(method, **sections))


def recipe(method: str = "sft", **sections: Any) -> Recipe:
    given: dict[str, Any] = {
        "name": "x",
        "method": method,
        "output_dir": "x",
        "model": {"path": "builtin:tiny"},
        "data": {"train": [{"path": METHODS[method].smoke_data}]},
    }
    return Recipe.model_validate(given | sections)


def only(method: str = "sft", **sections: Any) -> Problem:
    found = problems(method, **sections)
    assert len(found) == 1, found
    return found[0]


# --- a path that is an adapter ---------------------------------------------------------------------------------------


def test_an_adapter_needs_a_word_and_all_three_are_named(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a")
    problem = only(model={"path": str(adapter)})
    assert problem.key == ("model", "path")
    assert "PEFT adapter of" in problem.message
    assert all(word in problem.fix for word in ("continue", "merge", "new"))


def test_the_words_and_the_peft_section(tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "a"))
    peft = {"peft": {"target_modules": ["q_proj"]}}
    for good in ({"adapter": "continue"}, {"adapter": "merge"}):
        assert problems(model={"path": path} | good) == []
    for word in ("merge", "new"):
        assert problems(model={"path": path, "adapter": word}, **peft) == []
    assert only(model={"path": path, "adapter": "continue"}, **peft).key == ("peft",)
    assert only(model={"path": path, "adapter": "new"}).key == ("model", "adapter")
    assert only(model={"path": "builtin:tiny", "adapter": "merge"}).key == ("model", "adapter")
    assert problems(model={"path": "org/adapter", "adapter": "merge"}) == []  # the hub is not asked


def test_frozen_models_get_their_adapter_merged_in(tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "a"))
    assert "adapter: merge" in only("dpo", ref_model={"path": path}).fix
    assert problems("dpo", ref_model={"path": path, "adapter": "merge"}) == []
    assert "no new adapter" in only("dpo", ref_model={"path": path, "adapter": "new"}).message


def test_a_run_directory_and_its_checkpoint(tmp_path: Path) -> None:
    run = write_adapter(tmp_path / "run")
    write_adapter(run / "checkpoint-5")
    base = resolve_model_path("builtin:tiny")
    for path in (str(run), f"{run}@5"):
        assert base_model_path(path) == base
        assert (read_model_config(path) or {})["model_type"] == "llama"
        assert problems(model={"path": path, "adapter": "continue"}) == []
    assert base_model_path("org/name") == "org/name"
    assert base_model_path("builtin:tiny") == base


def test_an_adapter_of_itself_ends(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_adapter(one, base_model_name_or_path=str(two))
    write_adapter(two, base_model_name_or_path=str(one))
    assert base_model_path(str(one)) in (str(one), str(two))
    assert "is an adapter itself" in only(model={"path": str(one), "adapter": "merge"}).message


@pytest.mark.parametrize(
    ("config", "shapes", "text"),
    [
        ({"base_model_name_or_path": None}, LORA, "does not say what the adapter's base is"),
        ({"base_model_name_or_path": "/nowhere/base"}, LORA, "is not on this machine"),
        ({}, {name: (4, 32) if "lora_A" in name else (128, 4) for name in LORA}, "is 128 x 64"),
        ({}, {name: (4, 64) if "lora_A" in name else (64, 4) for name in LORA}, "adapter for another base"),
        ({}, {name.replace("layers.0", "layers.9"): shape for name, shape in LORA.items()}, "has no module"),
        ({"task_type": "SEQ_CLS"}, LORA | SCORE, "gives scores"),
        ({"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": (4, 64)}, "cannot train on"),
        ({"peft_type": "OF_TOMORROW"}, LORA, "of type of_tomorrow, which the pinned PEFT does not know"),
    ],
)
def test_an_adapter_that_does_not_fit(
    tmp_path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], text: str
) -> None:
    path = str(write_adapter(tmp_path / "a", shapes, **config))
    problem = only(model={"path": path, "adapter": "continue"})
    assert text in problem.message + problem.fix
    assert problem.key == ("model", "path")


@pytest.mark.parametrize("path", ["run@7", "nowhere/adapter"])
def test_an_adapter_that_is_not_there_is_one_problem(tmp_path: Path, path: str) -> None:
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    assert only(model={"path": str(tmp_path / path), "adapter": "merge"}).key == ("model", "path")


def test_broken_adapter_folders(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a")
    given = {"path": str(adapter), "adapter": "merge"}
    write_header(adapter / "model.safetensors", {"x.weight": (1, 1)})
    assert problems(model=given) == []  # weights without a config.json are no model
    (adapter / "config.json").write_text("{}")
    assert "both a model and an adapter" in only(model=given).message
    (adapter / "model.safetensors").unlink()
    assert problems(model=given) == []  # the base's config beside an adapter, as many hub repositories have it
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    assert "not a safetensors file" in only(model=given).message
    (adapter / "adapter_model.safetensors").unlink()
    assert "no adapter weights" in only(model=given).message
    (adapter / "adapter_config.json").write_text("[]")
    assert "not a JSON mapping" in only(model=given).message


def test_score_heads(tmp_path: Path) -> None:
    scorer = str(write_adapter(tmp_path / "scorer", LORA | SCORE, task_type="SEQ_CLS"))
    headless = str(write_adapter(tmp_path / "headless", LORA, task_type="SEQ_CLS"))
    writer = str(write_adapter(tmp_path / "writer"))
    reward = {"reward_model": {"path": scorer, "adapter": "merge"}}
    assert problems("ppo", **reward) == []
    for wrong in (headless, writer):
        assert "no score head" in only("ppo", reward_model={"path": wrong, "adapter": "merge"}).message
        assert "no score head" in only("grpo", rewards=[{"use": wrong}]).message
    assert problems("grpo", rewards=[{"use": scorer}]) == []
    assert "no score head" in only("reward", model={"path": writer, "adapter": "continue"}).message
    assert problems("reward", model={"path": writer, "adapter": "merge"}) == []
    assert problems("reward", model={"path": scorer, "adapter": "continue"}) == []


# --- the peft section ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peft", "key", "text"),
    [
        ({"type": "xlora"}, "peft.type", "cannot be trained"),
        ({"type": "prompt_tuning"}, "peft", "needs `num_virtual_tokens`"),
        ({"type": "trainable_tokens", "token_indices": [271, 272]}, "peft.token_indices", "272 rows"),
        ({"task_type": "SEQ_CLS"}, "peft.task_type", "CAUSAL_LM"),
        ({"r": 0}, "peft.r", "at least 1"),
        ({"lora_alpha": 0}, "peft.lora_alpha", "at least 1"),
        ({"lora_dropout": 1.0}, "peft.lora_dropout", "below 1"),
        ({"init_lora_weights": "eva"}, "peft.init_lora_weights", "a pass over data"),
        ({"init_lora_weights": "loftq"}, "peft.init_lora_weights", "loftq_config"),
        ({"megatron_config": {"x": 1}}, "peft.megatron_config", "Megatron"),
        ({"target_modules": ["q_proj", "lm_head"]}, "peft.target_modules", "loss_type: nll"),
        ({"target_modules": ["q_prj"]}, "peft.target_modules.0", "did you mean `q_proj`?"),
        ({"target_modules": ["norm"]}, "peft.target_modules.0", "not a linear layer"),
        ({"layers_to_transform": [0, 2]}, "peft.layers_to_transform", "0 to 1"),
        ({"layers_to_transform": 2}, "peft.layers_to_transform", "no layer 2"),
        ({"modules_to_save": ["norm", "embed_token"]}, "peft.modules_to_save.1", "did you mean `embed_tokens`?"),
        ({"modules_to_save": ["score"]}, "peft.modules_to_save.0", "no module `score`"),
        ({"trainable_token_indices": [5, 272]}, "peft.trainable_token_indices", "no token 272"),
        ({"trainable_token_indices": {"embed_tokens": [-1]}}, "peft.trainable_token_indices", "no token -1"),
        ({"target_parameters": ["q_proj.wieght"]}, "peft.target_parameters.0", "no parameter"),
    ],
)
def test_what_does_not_go(peft: dict[str, Any], key: str, text: str) -> None:
    problem = only(peft=peft)
    assert ".".join(map(str, problem.key)) == key
    assert text in problem.message + problem.fix


@pytest.mark.parametrize(
    "peft",
    [
        {},
        {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
        {"init_lora_weights": "pissa", "modules_to_save": ["norm", "lm_head"], "layers_to_transform": [0, 1]},
        {"trainable_token_indices": {"embed_tokens": [0, 271]}},
        {"target_parameters": ["q_proj.weight"]},
        {"type": "ln_tuning", "target_modules": ["norm"]},
        {"type": "prompt_tuning", "num_virtual_tokens": 4},
    ],
)
def test_what_goes(peft: dict[str, Any]) -> None:
    assert problems(peft=peft) == []


def test_an_output_layer_that_the_loss_reads_itself() -> None:
    on_head = {"peft": {"target_modules": ["lm_head"]}}
    assert problems("sft", training={"loss_type": "nll"}, **on_head) == []
    liger = {"training": {"use_liger_kernel": True}}
    for method, refused in (("dpo", liger), ("kto", liger), ("distillation", {}), ("gkd", {})):
        sections = {"teacher": {"path": "builtin:tiny"}} if "teacher" in METHODS[method].sections else {}
        assert only(method, **on_head, **refused, **sections).key == ("peft", "target_modules")
    assert problems("dpo", **on_head) == []


def test_tokens_before_a_row_only_where_the_trainer_knows_of_them() -> None:
    peft = {"type": "p_tuning", "num_virtual_tokens": 4}
    assert "use lora, or one of sft" in only("dpo", peft=peft).fix
    assert problems("reward", peft=peft) == []


def test_every_type_is_either_trained_or_refused_with_a_reason() -> None:
    assert set(UNTRAINABLE) <= set(peft_types())
    assert len(peft_types()) - len(UNTRAINABLE) >= 30


def test_experts_are_left_to_the_check_with_the_model(tmp_path: Path) -> None:
    model = tmp_path / "moe"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "num_experts": 4}))
    (model / "tokenizer.json").write_text("{}")
    write_header(model / "model.safetensors", {"model.layers.0.mlp.experts.0.up_proj.weight": (8, 8)})
    given = {"model": {"path": str(model)}, "peft": {"target_parameters": ["experts.gate_up_proj"]}}
    found = [problem for problem in problems(**given) if problem.key[0] == "peft"]
    assert found == []
    assert not known_from_files(recipe(**given))


def test_when_files_tell_all() -> None:
    assert known_from_files(recipe(peft={"r": 8, "use_dora": True, "target_modules": "all-linear"}))
    assert not known_from_files(recipe(peft={"type": "oft"}))
    assert not known_from_files(recipe(peft={"rank_pattern": {"q_proj": 8}}))
    assert not known_from_files(recipe(model={"path": "org/name"}, peft={}))


def test_tied_embeddings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    model = {"path": str(tmp_path)}
    assert tied_embeddings(recipe(model=model, peft={"modules_to_save": ["embed_tokens", "norm"]})) == ["embed_tokens"]
    saved = {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}
    assert tied_embeddings(recipe(model=model, peft=saved)) == []
    assert tied_embeddings(recipe(peft={"modules_to_save": ["lm_head"]})) == []
