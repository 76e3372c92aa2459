"""Every shipped recipe is loaded, planned for the machine that it names, and shrunk; the seed's split is asserted to
the letter."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from ptcli.methods import METHODS
from ptcli.plan.accelerate import load_strategy
from ptcli.plan.model import Plan
from ptcli.plan.reference import has_reference
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import ModelSpec, Recipe
from ptcli.recipe.tree import Source, Table
from ptcli.recipe.yaml import read_yaml
from ptcli.request import Request, plan_request

FOLDER = Path(__file__).parents[2] / "recipes"
BASES = sorted((FOLDER / "base").glob("*.yaml"))
TOP = sorted(FOLDER.glob("*.yaml"))
PAIR = sorted((FOLDER / "pairs").rglob("*.yaml"))
FAMILIES = ("qwen3", "llama3", "smollm", "gemma", "mistral")
FAMILY = sorted(path for family in FAMILIES for path in (FOLDER / family).glob("*.yaml"))
DATA = sorted((FOLDER / "data").glob("*.yaml"))
RECIPES = [*TOP, *PAIR, *DATA, *FAMILY]
FORMS = ("full", "lora", "qlora")


def _id(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def _machine(path: Path) -> str:
    """What the recipe's comment says it is for, as `--assume-gpus` takes it, or `cpu`."""
    (machine,) = re.findall(r"^# machine: (\S+)$", path.read_text(), re.MULTILINE)
    return str(machine)


@cache
def _plan(path: Path) -> Plan:
    machine = _machine(path)
    return plan_request(Request(path, assume_gpus=None if machine == "cpu" else machine))


@cache
def _recipe(path: Path) -> Recipe:
    recipe = load_recipe(path).recipe
    assert recipe is not None
    return recipe


def _tree(path: Path) -> Table:
    """The file itself, without its bases."""
    root, problems = read_yaml(path.read_text(), Source(str(path), path.parent))
    assert isinstance(root, Table)
    assert problems == []
    return root


def test_number_of_recipes() -> None:
    assert (len(TOP), len(PAIR), len(DATA), len(FAMILY), len(BASES)) == (18, 2, 3, 43, 16)
    assert {*FOLDER.rglob("*.yaml")} == {*RECIPES, *BASES}, "a recipe in a folder that no test looks at"


def test_a_recipe_a_method() -> None:
    assert {path.stem for path in TOP} == {"demo", *METHODS}
    assert all(_recipe(path).method == path.stem for path in TOP if path.stem != "demo")


@pytest.mark.parametrize("path", RECIPES, ids=_id)
def test_planned_for_its_machine(path: Path) -> None:
    plan = _plan(path)
    assert plan.steps[-1].name == "trainer"
    assert plan.method == _recipe(path).method


@pytest.mark.parametrize("path", TOP, ids=_id)
def test_planned_for_eight_gpus(path: Path, ptcli: Callable) -> None:
    result = ptcli("train", path, "--dry-run", "--json", "--assume-gpus", "8x80GiB")
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    assert set(plan) >= {"method", "steps", "files", "batch", "memory"}
    assert plan["steps"][-1]["name"] == "trainer"


@pytest.mark.parametrize("path", RECIPES, ids=_id)
def test_planned_in_smoke(path: Path) -> None:
    assert plan_request(Request(path, smoke=True)).smoke


@pytest.mark.parametrize("path", [*RECIPES, *BASES], ids=_id)
def test_schema_line(path: Path) -> None:
    """Editors find the schema of the recipe's method; a base without a method has that of all."""
    (named,) = re.findall(r"\A# yaml-language-server: \$schema=(\S+)$", path.read_text(), re.MULTILINE)
    schema = (path.parent / named).resolve()
    assert schema.is_file()
    assert schema.parent == FOLDER / "schema"
    method = _recipe(path).method if path in RECIPES else _method_of_base(path)
    assert schema.stem == (method or "recipe")


def _method_of_base(path: Path) -> str | None:
    method = re.match(r"(\w+)-(full|lora|qlora)$", path.stem)
    return "grpo" if path.stem == "split-4-4" else method[1] if method else path.stem if path.stem in METHODS else None


@pytest.mark.parametrize("path", RECIPES, ids=_id)
def test_says_what_it_is(path: Path) -> None:
    comment = path.read_text().split("\n#\n", 1)[1].splitlines()
    assert comment[0].startswith("# ")
    assert len(path.read_text().splitlines()) <= 65


# ---------------------------------------------------------------- the families


def test_families_cover_methods_forms_and_machines() -> None:
    kinds = Counter((path.parent.name, *path.stem.rsplit("-", 2)[1:]) for path in FAMILY)
    for family in FAMILIES:
        assert {method for name, method, _ in kinds if name == family} == {"sft", "dpo", "grpo"}
        assert {form for name, _, form in kinds if name == family} == set(FORMS)
    assert {(method, form) for _, method, form in kinds} == {(m, f) for m in ("sft", "dpo", "grpo") for f in FORMS}
    assert {_gpus(path) for path in FAMILY} == {1, 8, 16}


def _gpus(path: Path) -> int:
    counts = re.findall(r"(\d+)x", _machine(path))
    return int(counts[0]) * int(counts[1]) if len(counts) == 2 else int(counts[0])


@pytest.mark.parametrize("path", FAMILY, ids=_id)
def test_family_recipe_adds_to_a_base(path: Path) -> None:
    """Short, and by its name: model, method, form."""
    assert "extends" in _tree(path).entries
    assert len([line for line in path.read_text().splitlines() if line and line[0] != "#"]) <= 20
    recipe = _recipe(path)
    model, method, form = path.stem.rsplit("-", 2)
    assert method == recipe.method
    assert form == ("qlora" if recipe.model.quantization else "lora" if recipe.peft else "full")
    size = re.search(r"-(\d+(?:\.\d+)?[bm])$", model)
    assert size
    assert (
        size[1] in recipe.model.path.lower() or "mistral" in recipe.model.path.lower() or "zephyr" in recipe.model.path
    )


def test_no_two_recipes_are_the_same() -> None:
    said = [_recipe(path).model_dump_json(exclude={"name", "output_dir"}) for path in (*TOP, *FAMILY)]
    assert len(set(said)) == len(said)


def test_every_base_is_used() -> None:
    texts = [path.read_text() for path in (*FAMILY, *BASES)]
    assert [base.name for base in BASES if not any(base.name in text for text in texts)] == []


# ---------------------------------------------------------------- does it fit?

BILLIONS = {
    "Qwen/Qwen2-0.5B": 0.5, "Qwen/Qwen2-0.5B-Instruct": 0.5, "Qwen/Qwen2-1.5B-Instruct": 1.5,
    "Qwen/Qwen2.5-0.5B": 0.5, "Qwen/Qwen2.5-0.5B-Instruct": 0.5, "Qwen/Qwen2.5-1.5B-Instruct": 1.5,
    "trl-lib/Qwen2-0.5B-Reward": 0.5,
    "Qwen/Qwen3-0.6B": 0.6, "Qwen/Qwen3-0.6B-Base": 0.6, "Qwen/Qwen3-1.7B": 1.7, "Qwen/Qwen3-4B-Instruct-2507": 4.0,
    "Qwen/Qwen3-8B": 8.2, "Qwen/Qwen3-8B-Base": 8.2, "Qwen/Qwen3-14B": 14.8, "Qwen/Qwen3-14B-Base": 14.8,
    "Qwen/Qwen3-32B": 32.8,
    "meta-llama/Llama-3.2-1B": 1.24, "meta-llama/Llama-3.2-1B-Instruct": 1.24,
    "meta-llama/Llama-3.2-3B-Instruct": 3.2, "meta-llama/Llama-3.1-8B": 8.0,
    "meta-llama/Llama-3.1-8B-Instruct": 8.0, "allenai/Llama-3.1-Tulu-3-8B-SFT": 8.0,
    "meta-llama/Llama-3.1-70B": 70.6, "meta-llama/Llama-3.1-70B-Instruct": 70.6,
    "meta-llama/Llama-3.3-70B-Instruct": 70.6,
    "HuggingFaceTB/SmolLM2-360M": 0.36, "HuggingFaceTB/SmolLM2-1.7B": 1.7, "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.7,
    "HuggingFaceTB/SmolLM3-3B": 3.1, "HuggingFaceTB/SmolLM3-3B-Base": 3.1,
    "google/gemma-2-2b-it": 2.6, "google/gemma-2-9b": 9.2, "google/gemma-2-9b-it": 9.2, "google/gemma-2-27b": 27.2,
    "google/gemma-3-1b-pt": 1.0, "google/gemma-3-1b-it": 1.0,
    "mistralai/Mistral-7B-v0.1": 7.2, "alignment-handbook/zephyr-7b-sft-full": 7.2,
    "mistralai/Mistral-Nemo-Instruct-2407": 12.2, "mistralai/Mistral-Small-24B-Instruct-2501": 23.6,
}  # fmt: skip
"""Parameters of the models that the recipes name, as their pages say."""

ROOM = 0.8
"""Share of a GPU's memory that weights, gradients and optimizer may take; the rest is for activations."""


@dataclass(frozen=True)
class _Bytes:
    """Bytes a parameter on one GPU: what every GPU holds, and what is split over them."""

    whole: float
    split: float

    def on(self, gpus: int) -> float:
        return self.whole + self.split / gpus


_STATE = {
    "ddp": _Bytes(16, 0), "single": _Bytes(16, 0),
    "zero2": _Bytes(2, 14), "zero3": _Bytes(0, 16), "fsdp2": _Bytes(0, 16),
}  # fmt: skip
"""Mixed-precision training of all weights with Adam: ZeRO (Rajbhandari et al., 2020), table 1."""
_WIDTHS = ((1, 1024), (4, 2048), (10, 3584), (50, 4608), (100, 8192))
"""Hidden size of models of up to so many billions of parameters, the smallest of the recipes'."""
_QUANTISED = 0.62
"""NF4 with double quantisation, and embeddings in bfloat16."""


def _trainer_gigabytes(recipe: Recipe, strategy: str, gpus: int) -> float:
    """GB on each trainer GPU for models, gradients and optimizer."""
    shards = gpus if strategy in ("zero3", "fsdp2") else 1
    total = sum(_frozen(spec) / shards for spec in _read_only(recipe))
    billions = BILLIONS[recipe.model.path]
    if recipe.peft:
        return total + _frozen(recipe.model) / shards + _adapter(recipe, billions) * 16 / shards
    trained = [billions] + ([BILLIONS[recipe.value_model.path]] if recipe.value_model else [])
    return total + sum(trained) * _STATE[strategy].on(gpus)


def _adapter(recipe: Recipe, billions: float) -> float:
    """Billions of parameters of an adapter on all linear layers, roughly: 2 r / width of each matrix."""
    assert recipe.peft
    width = next(width for most, width in _WIDTHS if billions <= most)
    return 2 * int(recipe.peft["r"]) / width * billions


def _frozen(spec: ModelSpec) -> float:
    """GB of a model that is only read."""
    size = _QUANTISED if spec.quantization else 4 if spec.dtype == "float32" else 2
    return BILLIONS[spec.path] * size


def _read_only(recipe: Recipe) -> list[ModelSpec]:
    """Reference, teacher and reward model, where there are any; an adapter's reference is the model without it."""
    specs = [recipe.teacher, recipe.reward_model]
    specs += [ModelSpec(path=reward.use) for reward in recipe.rewards if ":" not in reward.use]
    if has_reference(recipe) and not recipe.peft:
        specs.append(recipe.ref_model or recipe.model)
    return [spec for spec in specs if spec is not None]


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "demo"], ids=_id)
def test_fits_its_machine(path: Path) -> None:
    """State of training by the rules of thumb, not measured: a recipe that breaks them cannot run."""
    recipe, plan = _recipe(path), _plan(path)
    gigabytes = int(re.findall(r"(\d+)GiB", _machine(path))[0]) * 1.0737
    gpus = len(plan.steps[-1].gpus) * recipe.launch.nodes
    strategy = recipe.launch.accelerate or ("single" if gpus == 1 else "ddp")
    shared = (recipe.rollouts.gpu_memory_utilization or 0.0) if recipe.rollouts.mode == "colocate" else 0.0
    assert _trainer_gigabytes(recipe, strategy, gpus) <= ROOM * (1 - shared) * gigabytes
    if recipe.rollouts.gpus:
        copy = 2 * BILLIONS[recipe.model.path] / recipe.rollouts.tensor_parallel_size
        assert copy <= 0.6 * gigabytes, "no room for a KV cache beside the weights"


def test_a_recipe_that_cannot_fit_is_noticed(tmp_path: Path) -> None:
    full = _recipe(FOLDER / "llama3/llama-3.1-70b-sft-full.yaml")
    assert _trainer_gigabytes(full, "zero3", 16) == pytest.approx(70.6)
    assert _trainer_gigabytes(full, "ddp", 16) > 1000
    assert load_strategy("zero3")[0] is not None


# ---------------------------------------------------------------- the seed trio


def test_grpo_on_eight_gpus(root: Path, ptcli: Callable) -> None:
    result = ptcli("train", root / "recipes/grpo.yaml", "--dry-run", "--assume-gpus", "8x80GiB", "--json")
    rollouts, trainer = json.loads(result.out)["steps"]
    assert (rollouts["name"], rollouts["gpus"]) == ("rollouts", ["0", "1", "2", "3"])
    assert (trainer["name"], trainer["gpus"]) == ("trainer", ["4", "5", "6", "7"])
    assert rollouts["env"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert trainer["env"]["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert rollouts["argv"][:2] == ["vllm", "serve"]
    assert trainer["argv"][:2] == ["accelerate", "launch"]


@pytest.mark.parametrize(
    ("method", "model", "data"),
    [
        ("sft", "Qwen/Qwen2.5-0.5B", "trl-lib/Capybara"),
        ("dpo", "Qwen/Qwen3-0.6B", "trl-lib/ultrafeedback_binarized"),
        ("grpo", "Qwen/Qwen2.5-0.5B-Instruct", "trl-lib/DeepMath-103K"),
    ],
)
def test_seed_trio(method: str, model: str, data: str) -> None:
    recipe = _recipe(FOLDER / f"{method}.yaml")
    assert (recipe.method, recipe.model.path, recipe.data.train[0].path) == (method, model, data)


def test_smoke_says_what_it_replaces(root: Path, ptcli: Callable) -> None:
    result = ptcli("train", root / "recipes/grpo.yaml", "--dry-run", "--smoke")
    assert "Qwen/Qwen2.5-0.5B-Instruct -> builtin:tiny" in result.out
    assert "trl-lib/DeepMath-103K -> builtin:arithmetic" in result.out


def test_pair_uses_what_it_trained(ptcli: Callable) -> None:
    """Reward model and value model are both what the override says."""
    pair = FOLDER / "pairs/reward-then-ppo"
    model = FOLDER.parent / "ptcli/builtin/model"
    result = ptcli(
        "train", pair / "ppo.yaml", f"reward_model.path={model}", "--dry-run", "--assume-gpus", "1x80GiB", "--json"
    )
    assert result.code == 0, result.err
    resolved = next(text for name, text in json.loads(result.out)["files"].items() if name.endswith("resolved.yaml"))
    assert resolved.count(f"path: {model}\n") == 2
    assert _recipe(pair / "reward.yaml").model.path == _recipe(pair / "ppo.yaml").model.path
    assert f"runs/{_recipe(pair / 'reward.yaml').name}" in (pair / "ppo.yaml").read_text()


def test_pair_in_the_wrong_order(tmp_path: Path, ptcli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half before the first: the run is missing, and nobody looks for it on the hub."""
    monkeypatch.chdir(tmp_path)
    pair = FOLDER / "pairs/reward-then-ppo"
    result = ptcli("train", pair / "ppo.yaml", "reward_model.path=runs/pair-reward", "--dry-run", "--smoke")
    assert result.code == 2
    assert f"there is no model folder {tmp_path}/runs/pair-reward" in result.err
