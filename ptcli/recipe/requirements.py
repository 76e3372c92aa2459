"""What the method's row says about the recipe's sections: which it needs, which it may have."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, get_args

from ptcli.errors import KeyPath, Problem
from ptcli.methods import METHODS, NOT_COVERED, Method
from ptcli.methods import Section as SectionName
from ptcli.recipe.availability import not_shipped
from ptcli.recipe.catalogue import fields
from ptcli.recipe.suggest import nearest
from ptcli.recipe.tree import Broken, Scalar, Table, describe

_SECTIONS: tuple[str, ...] = get_args(SectionName)


def read_method(root: Table) -> tuple[Method | None, list[Problem]]:
    """The row that `method` names and what is wrong with the key; a misspelt method gives the row that was meant."""
    # A misspelt key is reported as such elsewhere; what it says is meant all the same.
    key = "method" if "method" in root.entries else next((k for k in root.entries if nearest(k, ["method"])), "")
    entry = root.entries.get(key)
    names = ", ".join(METHODS)
    if entry is None:
        return None, [Problem("`method` is missing", f"it is one of {names}", key=("method",))]
    node = entry.node
    if isinstance(node, Broken):
        return None, []
    if isinstance(node, Scalar) and node.text in METHODS:
        missing = not_shipped(METHODS[node.text])
        return METHODS[node.text], [missing] if missing else []
    if isinstance(node, Scalar) and node.text in NOT_COVERED:
        trainer = NOT_COVERED[node.text].partition(":")[2]
        message = f"the method `{node.text}` is not covered yet: TRL has its {trainer}, recipes cannot ask for it"
        return None, [Problem(message, f"the methods are {names}", key=("method",))]
    close = nearest(node.text, METHODS) if isinstance(node, Scalar) else None
    message = f"`method` must be text, not {describe(node)}"
    if isinstance(node, Scalar) and node.value is not None:
        message = f"there is no method {node.text[:40]!r}"
    fix = f"did you mean `{close}`? The methods are {names}" if close else f"the methods are {names}"
    return METHODS[close] if close else None, [Problem(message, fix, key=("method",))]


def superfluous_sections(method: Method, present: Collection[str]) -> Iterator[Problem]:
    """A problem for every section of the recipe that the method has no use for. `present`: names of its sections."""
    for name in _SECTIONS:
        if name in present and name not in method.sections:
            users = ", ".join(row.name for row in METHODS.values() if name in row.sections)
            yield Problem(f"`{name}` is not a section of {method.name}", f"remove it; it is for {users}", key=(name,))
    if "rollouts" in present and not method.backends:
        users = ", ".join(row.name for row in METHODS.values() if row.backends)
        why = "generates in the trainer itself" if method.online else "is not an online method"
        fix = f"remove it; it is for {users}"
        yield Problem(f"`rollouts` is not a section of {method.name}, which {why}", fix, key=("rollouts",))


def missing_sections(method: Method, present: Collection[str]) -> Iterator[Problem]:
    """A problem for every section that the method needs and the recipe has not."""
    for name in method.needs:
        if name not in present:
            yield Problem(f"{method.name} needs the section `{name}`", f"add `{name}:` to the recipe", key=(name,))


def refused_backend(method: Method, rollouts: dict[str, Any]) -> Iterator[Problem]:
    """A problem when the rollouts' backend, which is vllm unless they say otherwise, does not work with the method."""
    backend = rollouts.get("backend") or "vllm"
    if method.backends and backend not in method.backends:
        working = " or ".join(method.backends)
        message = f"{method.name} does not work with the rollouts backend {backend} in the pinned TRL"
        yield Problem(
            message, f"write rollouts: {{backend: {working}}}, or leave rollouts out", ("rollouts", "backend")
        )


def fraction_out_of_range(data: dict[str, Any]) -> Iterator[Problem]:
    """A problem when `data.eval` is a fraction that is no share of the training rows."""
    share = data.get("eval")
    if isinstance(share, float) and not 0 < share < 1:
        message = (
            f"`data.eval` as a fraction is the share of the training rows to hold out, between 0 and 1, not {share:g}"
        )
        yield Problem(message, "write for example 0.05, a number of rows, or a list of sources", key=("data", "eval"))


def refused_evaluation(method: Method, data: dict[str, Any]) -> Iterator[Problem]:
    """A problem when there are evaluation rows that the method's trainer fails on, which it does after hours."""
    evaluation = data.get("eval")
    if evaluation is not None and method.evaluates == "nothing":
        message = f"`data.eval` does not go with {method.name}: its trainer fails at an evaluation in the pinned TRL"
        yield Problem(message, "leave it out, and evaluate the checkpoints afterwards", key=("data", "eval"))
    elif isinstance(evaluation, dict) and method.evaluates == "one set":
        message = f"`data.eval` cannot have named sets with {method.name}: its trainer in TRL takes one set"
        yield Problem(message, "write one list of sources", key=("data", "eval"))


def contradictions(values: dict[str, Any], faulty: Collection[KeyPath]) -> Iterator[Problem]:
    """Problems of training arguments that transformers refuses together, which would end the run after its start.

    What goes with a key that is `faulty` cannot be told.
    """
    training = values.get("training", {})
    for first, second in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if training.get(first) is True and training.get(second) is True:
            message = f"`training.{first}` and `training.{second}` exclude each other"
            yield Problem(message, "set one of them", ("training", second))
    # As `ptcli.train.config` has it: rows to evaluate on are used.
    usual = "no" if values["data"].get("eval") is None else "steps" if "eval_steps" in training else "epoch"
    save, evaluate = training.get("save_strategy", "steps"), training.get("eval_strategy", usual)
    known = not {("training", "save_strategy"), ("training", "eval_strategy")} & set(faulty)
    if known and training.get("load_best_model_at_end") is True and save not in ("best", evaluate):
        message = (
            f"`training.load_best_model_at_end` needs save_strategy {save} and eval_strategy {evaluate} to be the same"
        )
        yield Problem(message, "give both the same value", ("training", "load_best_model_at_end"))


def kl_without_penalty(method: Method, values: dict[str, Any]) -> Iterator[Problem]:
    """A problem when the recipe has the KL divergence watched where `training.beta` is 0 and nothing computes it."""
    guard = values.get("guards", {}).get("kl", "off")
    action = guard.get("action", "warn") if isinstance(guard, dict) else guard
    beta = fields(method.config).get("beta")
    if action == "off" or not method.online or method.reference == "none" or beta is None:
        return
    if values.get("training", {}).get("beta", beta.default) == 0:
        message = "`guards.kl` has nothing to watch: without a penalty (`training.beta` is 0) there is no KL divergence"
        yield Problem(message, "set training.beta, for example 0.04, or leave guards.kl out", ("guards", "kl"))


def empty_names(values: dict[str, Any]) -> Iterator[Problem]:
    """A problem for each of `name` and `output_dir` that is empty: the run would land in the folder above."""
    for name in ("name", "output_dir"):
        if not values.get(name, "x").strip():
            yield Problem(f"`{name}` may not be empty", "leave it out for the default", key=(name,))
