"""A prompt and its answers: do they fit together, do two answers differ, does each have a prompt?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ptcli.data.model import Hit
from ptcli.data.rules.chats import ANSWERS, repeats
from ptcli.data.rules.facts import Seen, common
from ptcli.data.rules.shapes import FORMAT_COLUMNS
from ptcli.data.rules.words import LEAVE_OUT, clip, quote, typed

SHORT_PROMPT = 20
"""A text prompt of fewer characters may begin an answer by chance (`Hi`, `Hi there`)."""
FEW = 5
MOST = 0.8
_SCORES = ("score", "rating", "reward", "grade", "preference", "quality")


def formats(seen: Seen) -> Iterator[Hit]:
    """Text beside chats in one row: TRL tells the two apart by one column, picked at random."""
    row = seen.row
    if len({type(row[column]) for column in FORMAT_COLUMNS if column in row}) < 2:
        return
    kinds = {column: isinstance(row[column], list) for column in FORMAT_COLUMNS if _text_or_chat(row, column)}
    prompt = kinds.get("prompt")
    answers = {kinds[column] for column in ("chosen", "rejected") if column in kinds}
    if prompt is not None and len(answers) == 1 and prompt not in answers and seen.plan.form == "pairs":
        del kinds["prompt"]
        if prompt or not seen.beside_chats:
            yield _mismatch(seen)
    if True in kinds.values() and False in kinds.values():
        texts = next(column for column, chat in kinds.items() if not chat)
        chats = next(column for column, chat in kinds.items() if chat)
        detail = f"`{texts}` is text and `{chats}` a list of messages in the same row"
        yield Hit("mixed-format", "error", detail, _one_format(seen), "row")


def _one_format(seen: Seen) -> str:
    """Where only prompts are read, the other columns can go."""
    if seen.plan.form != "prompt":
        return "write all as text or all as messages, or leave columns out"
    kept = ("prompt", *(column for column in seen.plan.columns if column not in FORMAT_COLUMNS))
    return f"columns: [{clip(', '.join(kept), 200)}]"


def _text_or_chat(row: dict[str, Any], column: str) -> bool:
    value = row.get(column)
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _mismatch(seen: Seen) -> Hit:
    row = seen.row
    detail = f"`prompt` is {typed(row['prompt'])}, but `chosen` {typed(row['chosen'])}"
    if isinstance(row["prompt"], str) and "user" in seen.roles.get("chosen", []):
        fix = "columns: [chosen, rejected]"
    elif isinstance(row["prompt"], str):
        fix = 'prompt: [{role: user, content: "{prompt}"}]'
    else:
        fix = "write all three as text or all as messages"
    return Hit("prompt-format-mismatch", "error", detail, fix)


def prompt_duplicated(seen: Seen) -> Iterator[Hit]:
    """The prompt once more at the beginning of an answer."""
    if not seen.plan.explicit or seen.split is not None:
        return
    prompt = seen.row["prompt"]
    if not isinstance(prompt, str | list) or not prompt or (isinstance(prompt, str) and not prompt.strip()):
        return
    for column in ANSWERS:
        if column not in seen.plan.values:
            continue
        answer = seen.row[column]
        if type(answer) is type(prompt) and repeats(prompt, answer):
            short = isinstance(prompt, str) and len(prompt.strip()) < SHORT_PROMPT
            answers = [seen.row[name] for name in ("chosen", "rejected") if name in seen.plan.values]
            both = all(type(each) is type(prompt) and repeats(prompt, each) for each in answers)
            fix = "columns: [chosen, rejected]" if both and column != "completion" else f"cut the prompt off `{column}`"
            detail = f"the prompt is repeated at the beginning of `{column}`"
            yield Hit("prompt-duplicated", "error", detail, fix, "short" if short else "")
            return


def same_answers(seen: Seen) -> Iterator[Hit]:
    """Two answers that are the same teach nothing."""
    chosen, rejected = seen.row["chosen"], seen.row["rejected"]
    if equal(chosen, rejected):
        yield Hit("chosen-equals-rejected", "error", "`chosen` and `rejected` are the same", LEAVE_OUT)


def equal(chosen: Any, rejected: Any) -> bool:
    """Whether two answers are the same but for space around them."""
    if chosen is None or type(chosen) is not type(rejected):
        return False
    if isinstance(chosen, str):
        return chosen.strip() == rejected.strip()
    if not isinstance(chosen, list) or len(chosen) != len(rejected) or not chosen:
        return False
    if chosen[-1] != rejected[-1] and _stripped(chosen[-1]) != _stripped(rejected[-1]):
        return False
    return all(one == other or _stripped(one) == _stripped(other) for one, other in zip(chosen, rejected, strict=True))


def _stripped(message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        return message
    return message | {"content": message["content"].strip()}


def implicit_prompt(seen: Seen) -> Iterator[Hit]:
    """What the trainer makes of a pair without a prompt of its own."""
    if seen.split is None:
        return
    chosen, rejected = seen.row["chosen"], seen.row["rejected"]
    shared = common(chosen, rejected)
    if isinstance(chosen, str) and not chosen[:shared].strip():
        shared = 0  # TRL leaves a space to the answers
    good = shared > 0 and (isinstance(chosen, list) or well_cut(chosen, rejected, shared))
    if good or equal(chosen, rejected):
        return
    if shared == 0:
        what = "message" if isinstance(chosen, list) else "character"
        detail = f"there is no prompt, and `chosen` and `rejected` share not one {what} at their beginning"
        yield Hit("implicit-prompt-empty", "error", detail, "give each row a `prompt`")
    else:
        yield from _shared_text(chosen, rejected, shared)


def well_cut(chosen: str, rejected: str, shared: int) -> bool:
    """Whether a shared beginning of text looks like a prompt."""
    shorter = min(len(chosen), len(rejected))
    apart = chosen[shared - 1].isspace() and not chosen[:shared].isspace()
    return apart and shorter - shared >= FEW and shared <= MOST * shorter


def _shared_text(chosen: str, rejected: str, shared: int) -> Iterator[Hit]:
    shorter = min(len(chosen), len(rejected))
    if shared == shorter:
        detail = "one of `chosen` and `rejected` begins with the whole other one: nearly all of it becomes the prompt"
        yield Hit("chosen-prefix-of-rejected", "error", detail, "give each row a `prompt`")
        return
    if not chosen[shared - 1].isspace():
        what = f"ends inside a word or right after one ({clip(chosen[max(0, shared - 20) : shared])!r})"
    elif shorter - shared < FEW:
        what = f"leaves {shorter - shared} characters of an answer"
    else:
        what = f"covers {shared / shorter:.0%} of an answer"
    yield Hit("implicit-prompt-in-answer", "warning", f"the shared beginning {what}", "give each row a `prompt`")


def no_shared_prompt(seen: Seen) -> Iterator[Hit]:
    """A reward model that is shown answers only."""
    chosen, rejected = seen.row["chosen"], seen.row["rejected"]
    if seen.plan.explicit or not chosen or type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        return
    shared = common(chosen, rejected)
    if isinstance(chosen, str) and shared < min(len(chosen), len(rejected)):
        shared = len(chosen[:shared].rpartition(" ")[0].strip()) if not chosen[:shared].endswith("\n") else shared
    if shared == 0:
        detail = "there is no prompt, and `chosen` and `rejected` share no beginning: answers are scored without one"
        yield Hit("implicit-no-shared-prefix", "warning", detail, "give each row a `prompt`")


def scores(seen: Seen) -> Iterator[Hit]:
    """Scores that say the opposite of what the columns say."""
    row = seen.row
    for column, other in score_columns(seen.plan.columns):
        better, worse = row[column], row[other]
        if _number(better) and _number(worse) and better < worse:
            detail = f"`{clip(column)}` {quote(better)} is lower than `{clip(other)}` {quote(worse)}"
            yield Hit("score-contradicts-label", "warning", detail, "are the columns swapped?")
            return


def score_columns(columns: Sequence[str]) -> list[tuple[str, str]]:
    """The columns with a score of the chosen answer, each with that of the rejected one."""
    pairs = [(each, each.replace("chosen", "rejected")) for each in columns if "chosen" in each and each != "chosen"]
    return [
        (each, other) for each, other in pairs if other in columns and any(word in each.lower() for word in _SCORES)
    ]


def _number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
