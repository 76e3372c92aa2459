"""Arguments that do not fit the rows."""

from __future__ import annotations

from collections.abc import Iterator

from ptcli.data.model import Finding, Profile
from ptcli.data.rules.facts import Facts, Plan, plan_of
from ptcli.data.rules.words import rows_in_words
from ptcli.methods import Batching


def evaluation(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Evaluation without rows for it."""
    strategy = facts.context.argument("eval_strategy", "no")
    name = str(getattr(strategy, "value", strategy))
    held_out = facts.context.has_eval or facts.method.wants_eval
    if facts.train and not held_out and strategy and name != "no":
        message = f"`eval_strategy` is {name}, but there are no evaluation rows"
        yield Finding("eval-missing", "error", message, fix="give `data.eval`, or set training: {eval_strategy: no}")


def batches(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Fewer rows than a batch takes."""
    if not facts.train:
        return
    rows, needed = facts.total or profile.rows, facts.context.prompts_per_generation
    if facts.method.batching is Batching.GENERATION:
        if needed and rows < needed:
            message = f"{rows} prompts, and {needed} are needed for a generation batch: there would be 0 steps"
            yield _few("error", message, rows)
        elif needed and rows % needed and facts.total is None:
            message = (
                f"{rows % needed} of {rows} prompts do not fill a generation batch of {needed}: they are never seen"
            )
            yield Finding("rl-tail-dropped", "warning", message, rows % needed, share=rows % needed / rows)
        return
    yield from _global_batch(rows, facts)


def _global_batch(rows: int, facts: Facts) -> Iterator[Finding]:
    per_device = facts.context.argument("per_device_train_batch_size", 0)
    accumulation = facts.context.argument("gradient_accumulation_steps", 1)
    if not isinstance(per_device, int) or not isinstance(accumulation, int):
        return
    size = per_device * accumulation * facts.context.world
    if rows >= size:
        return
    message = f"{rows_in_words(rows)}, and a batch takes {size}"
    if facts.method.batching is Batching.PPO:
        yield _few("error", f"{message}: the trainer would wait for ever", rows)
    else:
        yield _few("warning", message, rows)


def _few(severity: str, message: str, rows: int) -> Finding:
    fix = "add rows, or lower `per_device_train_batch_size`"
    return Finding("too-few-rows", "error" if severity == "error" else "warning", message, rows, fix=fix, share=1.0)


def masks(profile: Profile, facts: Facts) -> Iterator[Finding]:
    """Loss masks that the rows give no ground for."""
    plans = {columns: plan_of(columns, facts) for columns in profile.columns}
    if facts.context.argument("completion_only_loss") is True:
        count = sum(profile.columns[columns] for columns, plan in plans.items() if _no_completion(columns, plan))
        if count:
            message = "`completion_only_loss` needs prompt and completion: everything would be trained"
            fix = "use `assistant_only_loss` for chats, or write prompt and completion"
            yield Finding("completion-only-needs-pc", "error", message, count, (), fix, count / profile.rows)
    if facts.context.argument("assistant_only_loss") is True:
        count = sum(profile.columns[columns] for columns, plan in plans.items() if plan.form in ("text", "tokens"))
        pairs = any(plan.form == "prompt-completion" for plan in plans.values())
        count += profile.kinds["prompt"]["str"] if pairs and "prompt" in profile.kinds else 0
        if count:
            message = "`assistant_only_loss` needs chats, and these rows are none"
            fix = "use `completion_only_loss` for prompt and completion, or write chats"
            yield Finding("assistant-only-loss", "error", message, count, (), fix, count / profile.rows)


def _no_completion(columns: tuple[str, ...], plan: Plan) -> bool:
    """Whether rows with these columns do not say what of them is the completion."""
    given = {"completion_mask", "labels"}.intersection(columns)
    return plan.form in ("text", "messages", "sharegpt") or (plan.form == "tokens" and not given)


SET_RULES = (evaluation, batches, masks)
