"""What token checks have counted, and what it comes to: findings and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ptcli.data.model import MOST_ROWS, Context, Finding, Hit, Profile, Severity, Tally

_UNKNOWN_SHARE = 0.001
"""Share of unknown tokens that is worth a warning."""
_BAR = 30
"""Characters of the histogram's longest bar."""
_AWAY = "completion-truncated-away"


@dataclass
class TokenTally:
    """Counts of a run of rows. Picklable; tallies of consecutive runs are merged in their order."""

    rows: int = 0
    """Rows that were tokenised."""
    skipped: int = 0
    """Rows that could not be: what is wrong with them is for the structure rules to say."""
    dropped: int = 0
    """Rows that the trainer leaves out."""
    drop_rule: str = _AWAY
    """The rule that says so."""
    cut_rows: int = 0
    """Rows of which the length limit takes tokens away."""
    cut: int = 0
    """Tokens that it takes away."""
    tokens: int = 0
    """Tokens that the trainer reads."""
    trained: int = 0
    """Tokens that are trained."""
    trains: bool = True
    """False where what is trained is generated."""
    unknown: int = 0
    """Unknown tokens."""
    sequences: int = 0
    total: int = 0
    """Tokens of all sequences before any cut."""
    longest: int = 0
    longest_row: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Upper bound of a sequence's length, a power of two -> sequences."""
    hits: dict[tuple[str, Severity, str], Tally] = field(default_factory=dict)
    """(rule, severity, variant) -> its tally."""
    current: int | None = field(default=None, compare=False)
    """The row that is being judged."""
    counted: set[tuple[str, Severity, str]] = field(default_factory=set, compare=False)
    """What was counted of it."""
    whole: list[Hit] = field(default_factory=list)
    """What is wrong with tokenizer and arguments, whatever the rows."""

    def hit(self, hit: Hit, row: int, variant: str = "") -> None:
        """Count a hit, of one kind at most once a row; the hits of a row follow each other."""
        key = (hit.rule, hit.severity, variant)
        if self.current != row:
            self.current, self.counted = row, set()
        if key in self.counted:
            return
        self.counted.add(key)
        tally = self.hits.setdefault(key, Tally(0, [], hit.detail, hit.fix))
        tally.count += 1
        if len(tally.rows) < MOST_ROWS:
            tally.rows.append(row)

    def measure(self, length: int, row: int) -> None:
        """Count a sequence of that many tokens."""
        self.sequences += 1
        self.total += length
        self.lengths[1 << max(length - 1, 0).bit_length()] += 1
        if length > self.longest:
            self.longest, self.longest_row = length, row


_SUMS = ("rows", "skipped", "dropped", "cut_rows", "cut", "tokens", "trained", "unknown", "sequences", "total")


def merge(tally: TokenTally, later: TokenTally, offset: int = 0) -> None:
    """Add to a tally that of later rows, whose numbers are counted from `offset`."""
    for name in _SUMS:
        setattr(tally, name, getattr(tally, name) + getattr(later, name))
    tally.lengths += later.lengths
    if later.longest > tally.longest:
        tally.longest, tally.longest_row = later.longest, later.longest_row + offset
    for key, found in later.hits.items():
        rows = [row + offset for row in found.rows]
        known = tally.hits.get(key)
        if known is None:
            tally.hits[key] = Tally(found.count, rows, found.detail, found.fix)
        else:
            known.count += found.count
            known.rows = [*known.rows, *rows][:MOST_ROWS]
    tally.whole = tally.whole or later.whole


# --- findings --------------------------------------------------------------------------------------------------------


def conclude_tokens(tally: TokenTally, context: Context) -> list[Finding]:
    """The findings of the token rules on one split."""
    findings = [_whole(hit, context) for hit in tally.whole]
    findings += [_finding(*key, found, tally, context) for key, found in tally.hits.items()]
    return [*findings, *_unknown(tally, context)]


def _whole(hit: Hit, context: Context) -> Finding:
    return Finding(hit.rule, hit.severity, hit.detail, fix=hit.fix, split=context.split)


def _finding(rule: str, severity: Severity, variant: str, found: Tally, tally: TokenTally, context: Context) -> Finding:
    message = found.detail
    if variant == "dropped" and tally.dropped == tally.rows and not tally.skipped:
        severity, message = "error", f"{message}: no row is left"
    rows = tally.rows + tally.skipped
    return Finding(
        rule, severity, message, found.count, tuple(found.rows), found.fix, found.count / max(rows, 1), context.split
    )


def _unknown(tally: TokenTally, context: Context) -> Iterator[Finding]:
    share = tally.unknown / max(tally.tokens + tally.cut, 1)
    if share > _UNKNOWN_SHARE:
        said = f"{share:.1%} of the tokens are unknown to the tokenizer"
        yield Finding("unk-rate", "warning", said, tally.rows, share=1.0, split=context.split)


def eval_mask_mismatch(train: Profile, evaluation: Profile, context: Context) -> list[Finding]:
    """Evaluation rows of which other parts count than of training rows; `context`: the evaluation's.

    The columns of the first training row decide whether prompts are masked, where the recipe does not.
    """
    from ptcli.data.tokens.check import encoder_class

    if not encoder_class(context.method).column_mask or context.argument("completion_only_loss") is not None:
        return []
    kinds = [_is_pair(train), _is_pair(evaluation)]
    if None in kinds or kinds[0] == kinds[1]:
        return []
    what = ("trained on completions", "whole texts") if kinds[0] else ("trained on whole texts", "prompts, too")
    message = f"the model is {what[0]} and evaluated on {what[1]}: eval_loss is not comparable with loss"
    rows = evaluation.rows
    fix = "bring both into one form, or set `training.completion_only_loss`"
    return [Finding("eval-mask-mismatch", "warning", message, rows, fix=fix, share=1.0, split=context.split)]


def _is_pair(profile: Profile) -> bool | None:
    """Whether rows are prompts with completions; None where there are none, or tokens already."""
    names = {name for columns in profile.columns for name in columns}
    return None if not names or "input_ids" in names else {"prompt", "completion"} <= names


# --- summary ---------------------------------------------------------------------------------------------------------


def summarize(tally: TokenTally, context: Context) -> list[str]:
    """A few lines: how long sequences are, what is cut, what is trained."""
    if not tally.sequences:
        return []
    what = "sequences" if tally.trains else "prompts"
    mean = tally.total / tally.sequences
    lines = [f"{what}: {tally.sequences:,}; tokens: mean {mean:,.0f}, longest {tally.longest:,}"]
    lines += _histogram(tally.lengths, tally.sequences)
    if tally.skipped:
        lines.append(f"rows that could not be tokenised: {_share(tally.skipped, tally.rows + tally.skipped)}")
    if tally.trains:
        lines.append(f"rows cut by max_length: {_share(tally.cut_rows, tally.rows)}")
        lines.append(f"rows left out by the trainer: {_share(tally.dropped, tally.rows)}")
        lines.append(f"trained tokens: {_share(tally.trained, tally.tokens)}")
    return lines


def _histogram(lengths: Counter[int], sequences: int) -> Iterator[str]:
    first, last = min(lengths).bit_length() - 1, max(lengths).bit_length() - 1
    most = max(lengths.values())
    width = len(f"{1 << last:,}")
    for power in range(first, last + 1):
        count = lengths[1 << power]
        bar = "#" * max(round(count / most * _BAR), int(count > 0))
        yield f"  up to {1 << power:>{width},}  {bar:<{_BAR}}  {count / sequences:.0%}"


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / max(whole, 1):.1%})"
