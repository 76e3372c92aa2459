"""Check a recipe's data: read, judge the rows, tokenize a sample, report.

entries ─ resolve ─▶ sources ─ examine ─▶ profile ─ conclude ─▶ findings ┐
                                  └─ sample ─▶ tokens ─ conclude ─▶ findings ┴─▶ report
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptcli.data.context import context_of, splits_of
from ptcli.data.model import Context, Finding, Report, Row
from ptcli.data.request import NO_MODEL, DataRequest, accept_data
from ptcli.errors import KeyPath, Problem, PtcliError, RequestError
from ptcli.methods import METHODS
from ptcli.recipe.model import DataEntry, Recipe

if TYPE_CHECKING:
    from ptcli.data.engine import Examined, PreparedEntry
    from ptcli.data.tokens import TokenChecker

Progress = Callable[[str, int, int | None], None]
"""What is being read, bytes read, and bytes in all where that is known."""

TOKEN_ROWS = 1000
"""Rows that the token rules see by default, besides the longest."""


@dataclass(frozen=True)
class Depth:
    """How much is looked at."""

    sample: int | None = None
    """Structure and token rules on this many rows; None: structure rules on all."""
    full: bool = False
    """Token rules on all rows, too."""
    show: int = 0
    """Rows to show with what is trained of them."""


@dataclass(frozen=True)
class Checked:
    """What a check came to."""

    report: Report
    splits: dict[str, Examined]
    shown: tuple[Any, ...] = ()
    """Encoded rows, with the tokenizer that prints them."""
    tokenizer: Any = None

    def shown_lines(self, colour: bool) -> list[str]:
        """The rows that were asked for, with what is trained in colours or in brackets."""
        if not self.shown:
            return []
        from ptcli.data.tokens import render_show

        return [render_show(encoded, self.tokenizer, colour=colour) for encoded in self.shown]

    def place(self, finding: Finding, row: int) -> str:
        """Where a row of a finding is, as `rows.jsonl:17`."""
        return self.splits[finding.split].place(row)


def check_recipe(path: Path, overrides: Sequence[str] = (), depth: Depth = Depth()) -> Report:
    """The report on a recipe file's data.

    Raises:
        RequestError: for what is wrong with the recipe, or not there.
    """
    return check(accept_data(DataRequest(path, tuple(overrides))).recipe, depth).report


def check(
    recipe: Recipe,
    depth: Depth = Depth(),
    *,
    progress: Progress | None = None,
    hide_torch: bool = False,
    tokenizer_needed: bool = False,
) -> Checked:
    """Check all splits of a recipe.

    `hide_torch`: import the tokenizers' library without torch, in a process that never uses torch: seconds faster.

    Raises:
        RequestError: for a path that is not there, and with `tokenizer_needed` for a tokenizer that cannot be had.
    """
    prepared = {split: _prepare(recipe, entries, split) for split, entries in splits_of(recipe)}
    tokenizer, notes = _tokenizer(recipe, hide_torch=hide_torch, needed=tokenizer_needed)
    done = [_check_split(recipe, split, entries, depth, tokenizer, progress) for split, entries in prepared.items()]
    findings = [finding for each in done for finding in each.findings]
    findings += _across(done)
    train = done[0]
    report = Report(
        method=recipe.method,
        rows=train.examined.rows,
        checked=sum(each.examined.profile.rows for each in done),
        findings=tuple(_accepted(findings, recipe.data.allow)),
        notes=(*notes, *_sampled(done, depth)),
        tokenized=sum(each.tokenized for each in done),
        summary=(*train.summary, *_rows_in_all(done)),
    )
    shown = _show(train, depth.show) if depth.show else ()
    return Checked(report, {each.context.split: each.examined for each in done}, shown, tokenizer)


# --- one split -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    context: Context
    examined: Examined
    findings: tuple[Finding, ...]
    checker: TokenChecker | None
    tokenized: int = 0
    summary: tuple[str, ...] = ()


def _prepare(recipe: Recipe, entries: Sequence[DataEntry], split: str) -> list[PreparedEntry]:
    """The entries with their files looked up. Raises RequestError with every one that is not there."""
    from ptcli.data.engine import PreparedEntry
    from ptcli.data.mixture import compile_transforms
    from ptcli.data.read.sources import resolve

    prepared: list[PreparedEntry] = []
    problems: list[Problem] = []
    transforms = compile_transforms(entries, METHODS[recipe.method], recipe.data.train)
    for index, (entry, transform) in enumerate(zip(entries, transforms, strict=True)):
        key: KeyPath = ("data", *split.split(".", 1), index)
        try:
            source = resolve(entry, (*key, "path"))
        except RequestError as error:
            problems += error.problems
            continue
        shuffle = None if entry.shuffle is False else recipe.seed if entry.shuffle is True else entry.shuffle
        name = ".".join(map(str, key))
        prepared.append(PreparedEntry(source, transform, shuffle=shuffle, take=entry.take, key=name))
    if problems:
        raise RequestError(problems)
    return prepared


def _check_split(
    recipe: Recipe,
    split: str,
    entries: list[PreparedEntry],
    depth: Depth,
    tokenizer: Any,
    progress: Progress | None,
) -> _Split:
    from ptcli.data.engine import examine, first_row
    from ptcli.data.rules import conclude

    context = context_of(recipe, split, tokenizer=tokenizer is not None)
    checker = _token_checker(recipe, context, tokenizer, first_row(entries)) if tokenizer is not None else None
    examined = examine(
        entries,
        context,
        sample=depth.sample,
        token_rows=depth.sample or TOKEN_ROWS,
        full=depth.full,
        tokens=checker,
        progress=(lambda done, total: progress(split, done, total)) if progress else None,
    )
    findings = [*conclude(examined.profile, context, examined.rows if examined.estimated else None)]
    if checker is None:
        return _Split(context, examined, tuple(findings), None)
    tally = (examined.token_tally or checker.tally) if depth.full else _tokenize(checker, examined.token_sample)
    return _with_tokens(context, examined, findings, checker, tally)


def _with_tokens(
    context: Context, examined: Examined, findings: list[Finding], checker: TokenChecker, tally: Any
) -> _Split:
    from ptcli.data.tokens import conclude_tokens, summarize

    findings += conclude_tokens(tally, context)
    return _Split(
        context, examined, tuple(findings), checker, tokenized=tally.rows, summary=tuple(summarize(tally, context))
    )


def _tokenize(checker: TokenChecker, rows: Sequence[tuple[int, Any]]) -> Any:
    checker.add(rows)
    return checker.tally


def _show(split: _Split, count: int) -> tuple[Any, ...]:
    if split.checker is None:
        return ()
    rows = split.examined.token_sample[:count]
    return tuple(encoded for _, row in rows if (encoded := split.checker.encode(row)) is not None)


def _across(done: Sequence[_Split]) -> Iterator[Finding]:
    """What only two splits together tell."""
    from ptcli.data.rules import overlap
    from ptcli.data.tokens import eval_mask_mismatch

    train = done[0]
    for other in done[1:]:
        yield from overlap(train.examined.profile, other.examined.profile, other.context)
        if train.checker is not None:
            yield from eval_mask_mismatch(train.examined.profile, other.examined.profile, other.context)


def _sampled(done: Sequence[_Split], depth: Depth) -> Iterator[str]:
    """What of a large file was not looked at."""
    rows, tokenized = sum(each.examined.rows for each in done), sum(each.tokenized for each in done)
    if depth.sample is not None:
        yield f"about {rows:,} rows, by a sample; without --sample all are read"
    elif tokenized and tokenized < sum(each.examined.profile.rows for each in done) and not depth.full:
        yield f"{tokenized:,} of {rows:,} rows were tokenized, from all over the files; --full does it with all"


def _rows_in_all(done: Sequence[_Split]) -> Iterator[str]:
    from ptcli.data.summary import summarize_rows

    train, *others = done
    return summarize_rows(train.examined.profile, {each.context.split: each.examined.profile for each in others})


def _accepted(findings: Iterable[Finding], allowed: Sequence[str]) -> Iterator[Finding]:
    """What the recipe accepts by name is still said, and stops nothing."""
    for finding in findings:
        if finding.rule in allowed and finding.severity == "error":
            yield replace(finding, severity="warning", message=f"{finding.message} (accepted by data.allow)")
        else:
            yield finding


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def _tokenizer(recipe: Recipe, *, hide_torch: bool, needed: bool) -> tuple[Any, tuple[str, ...]]:
    """The recipe's tokenizer; None, with a note that says why, where there is none."""
    skipped = "the token rules were skipped"
    if recipe.model.path == NO_MODEL:
        return None, (f"{skipped}: no tokenizer was named; add --model PATH",)
    from ptcli.data.tokens import load_tokenizer

    try:
        return load_tokenizer(recipe, hide_torch=hide_torch), ()
    except PtcliError as error:
        if needed:
            raise RequestError(Problem(str(error), "name a model on this machine, or leave --model out")) from error
        return None, (f"{skipped}: {error}",)


def _token_checker(recipe: Recipe, context: Context, tokenizer: Any, first: Row | None) -> TokenChecker:
    from ptcli.data.tokens import TokenChecker, limits_of

    return TokenChecker(context, tokenizer, limits_of(recipe), first)
