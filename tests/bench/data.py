"""The data checks on generated data: rows a second beside pyarrow, memory, a sample of a large file, tokens.

$BENCH_DATA_MB sets the size of each of the two generated files (1000); the large file is five times the first.
`python -m tests.bench.data KIND ...` is one measured process.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "7"))
MEGABYTES = int(os.environ.get("BENCH_DATA_MB", "1000"))
_TOPICS = 4000
"""Texts that rows are put together from."""
_TOKEN_ROWS = 4000
_INTERVAL = 0.02
"""Seconds between two looks at the memory."""
_MOST_BYTES = 400 * 2**20
_MOST_SECONDS = 6.0
_LEAST_ROWS = 0.7
_LEAST_TOKENS = 0.8

Row = dict[str, Any]


# --- data ------------------------------------------------------------------------------------------------------------


def _texts(random: Random) -> list[str]:
    words = ["".join(random.choices("etaoinshrdlucmfw", k=random.randint(2, 9))) for _ in range(5000)]
    return [" ".join(random.choices(words, k=random.randint(10, 120))).capitalize() + "." for _ in range(_TOPICS)]


def _turn(role: str, text: str) -> Row:
    return {"role": role, "content": text}


def conversations(random: Random) -> Iterator[Row]:
    """Rows of SFT: two to five messages."""
    texts, number = _texts(random), 0
    while True:
        number += 1
        messages = [_turn("system", "You are a helpful assistant.")] if random.random() < 0.4 else []
        for _ in range(random.choice((1, 1, 1, 2))):
            messages.append(_turn("user", f"{random.choice(texts)}\n\nNumber {number}?"))
            messages.append(_turn("assistant", random.choice(texts)))
        yield {"messages": messages}


def pairs(random: Random) -> Iterator[Row]:
    """Preference pairs with a prompt, in chats, and a few columns more."""
    texts, number = _texts(random), 0
    while True:
        number += 1
        yield {
            "id": f"row-{number}",
            "source": "generated",
            "prompt": [_turn("user", f"{random.choice(texts)}\n\nNumber {number}?")],
            "chosen": [_turn("assistant", f"It is {number}. {random.choice(texts)}")],
            "rejected": [_turn("assistant", f"Nobody knows. {random.choice(texts)}")],
            "score_chosen": 8.5,
            "score_rejected": 2,
        }


def text_pairs(random: Random) -> Iterator[Row]:
    """Preference pairs of texts, whose common beginning is the prompt."""
    texts, number = _texts(random), 0
    while True:
        number += 1
        prompt = f"Human: {random.choice(texts)[:80]}\n\nNumber {number}?\n\nAssistant:"
        yield {
            "chosen": f"{prompt} It is {number}. {random.choice(texts)}",
            "rejected": f"{prompt} Nobody knows. {random.choice(texts)}",
        }


def write(path: Path, rows: Iterator[Row], megabytes: int) -> None:
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 1_000_000:
            size += file.write(json.dumps(next(rows)) + "\n")


# --- what is measured, each in a process of its own ------------------------------------------------------------------


def stream(path: str) -> tuple[int, float]:
    """Rows and seconds of pyarrow's streaming reader."""
    import pyarrow.json

    start = time.perf_counter()
    rows = sum(batch.num_rows for batch in pyarrow.json.open_json(path))
    return rows, time.perf_counter() - start


def structure(path: str, method: str) -> tuple[int, float]:
    """Rows and seconds of the structure rules over a whole file. What they import is there before, as it is there for
    pyarrow's reader."""
    import ptcli.data.columnar  # noqa: F401
    from ptcli.data.engine import PreparedEntry, examine
    from ptcli.data.model import Context
    from ptcli.data.read.sources import resolve
    from ptcli.data.rules import conclude
    from ptcli.methods import METHODS
    from ptcli.recipe.model import DataEntry

    context = Context(METHODS[method])
    start = time.perf_counter()
    examined = examine([PreparedEntry(resolve(DataEntry(path=path), ("path",)))], context)
    found = conclude(examined.profile, context)
    seconds = time.perf_counter() - start
    if found:
        sys.exit(f"the generated rows are not good: {found}")
    return examined.rows, seconds


def tokens(path: str) -> tuple[int, float, float]:
    """Tokens of some rows, and the seconds of the token checks and of the tokenizer alone on the same texts."""
    from ptcli.data.context import context_of
    from ptcli.data.request import DataRequest, accept_data
    from ptcli.data.tokens import TokenChecker, limits_of, load_tokenizer

    recipe = accept_data(DataRequest(data=path, method="sft", model="builtin:tiny", max_length=100_000)).recipe
    tokenizer = load_tokenizer(recipe, hide_torch=True)
    context = context_of(recipe, "train", tokenizer=True)
    with open(path, encoding="utf-8") as file:
        rows = [(number, json.loads(line)) for number, line in zip(range(_TOKEN_ROWS), file, strict=False)]
    checker = TokenChecker(context, tokenizer, limits_of(recipe))
    texts = [text for _, row in rows for text in checker.encoder.draft(row).texts]
    start = time.perf_counter()
    alone = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    middle = time.perf_counter()
    checker.add(rows)
    return alone, time.perf_counter() - middle, middle - start


_MEASURED: dict[str, Callable[..., tuple[float, ...]]] = {"stream": stream, "structure": structure, "tokens": tokens}


def run(*words: str) -> list[float]:
    """What one measured process says."""
    result = subprocess.run(_argv(words), capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(words)}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    return list(json.loads(result.stdout.splitlines()[-1]))


def _argv(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tests.bench.data", *words]


def peak_bytes(*words: str) -> int:
    """The most memory that a measured process and its children hold together; what they share counts once (PSS)."""
    process = psutil.Popen(_argv(words), stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _held(process))
        time.sleep(_INTERVAL)
    if process.returncode:
        sys.exit(f"{' '.join(words)} failed")
    return peak


def _held(process: psutil.Process) -> int:
    try:
        return sum(each.memory_full_info().pss for each in (process, *process.children(recursive=True)))
    except psutil.Error:  # one has ended meanwhile
        return 0


# --- what is claimed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One thing that must hold."""

    name: str
    measure: Callable[[Path], tuple[str, bool] | None]
    """Figures, and whether they keep the limit; None where it cannot be measured here, which it says."""


def _structure(kind: str, method: str) -> Callable[[Path], tuple[str, bool]]:
    def measure(folder: Path) -> tuple[str, bool]:
        path = str(_generated(folder, kind))
        ours, theirs = [], []
        for _ in range(ROUNDS):
            rows, seconds = run("structure", path, method)
            ours.append(rows / seconds)
            rows, seconds = run("stream", path)
            theirs.append(rows / seconds)
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        return _figures(ours, theirs, "rows/s", ratio, _LEAST_ROWS), ratio >= _LEAST_ROWS

    return measure


def _figures(ours: list[float], theirs: list[float], unit: str, ratio: float, limit: float) -> str:
    mine, other = statistics.median(ours), statistics.median(theirs)
    return f"{mine:9,.0f} {unit} / {other:9,.0f} {unit} = {ratio:5.3f}  (limit at least {limit})"


def _memory(kind: str, method: str) -> Callable[[Path], tuple[str, bool]]:
    def measure(folder: Path) -> tuple[str, bool]:
        path = _generated(folder, kind)
        with open(path, "rb") as file:
            limit = _MOST_BYTES + 3 * max(map(len, file))
        peak = peak_bytes("structure", str(path), method)
        return f"{peak / 2**20:6.0f} MiB  (limit at most {limit / 2**20:.0f})", peak <= limit

    return measure


def _sample(folder: Path) -> tuple[str, bool] | None:
    first, large = _generated(folder, "messages"), folder / "large.jsonl"
    need = 5 * first.stat().st_size
    if shutil.disk_usage(folder).free < 1.2 * need:
        print(f"seconds of --sample: not measured, {folder} has no room for {need / 1e9:.1f} GB", flush=True)
        return None
    with open(large, "wb") as file:
        for _ in range(5):
            with open(first, "rb") as part:
                shutil.copyfileobj(part, file, 16 << 20)
    argv = [sys.executable, "-m", "ptcli", "validate-data", "--data", str(large), "--method", "sft", "--sample", "1000"]
    start = time.perf_counter()
    result = subprocess.run(argv, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    large.unlink()
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return f"{seconds:6.2f} s, {need / 1e9:.1f} GB  (limit at most {_MOST_SECONDS})", seconds <= _MOST_SECONDS


def _tokens(folder: Path) -> tuple[str, bool]:
    path = str(_generated(folder, "messages"))
    rounds = [run("tokens", path) for _ in range(ROUNDS)]
    ours = [count / checked for count, checked, _ in rounds]
    theirs = [count / alone for count, _, alone in rounds]
    ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
    return _figures(ours, theirs, "tokens/s", ratio, _LEAST_TOKENS), ratio >= _LEAST_TOKENS


_ROWS = {"messages": conversations, "pairs": pairs, "text-pairs": text_pairs}
CLAIMS = (
    Claim("data rows/s, SFT messages", _structure("messages", "sft")),
    Claim("data rows/s, preference pairs", _structure("pairs", "dpo")),
    Claim("data rows/s, pairs of texts", _structure("text-pairs", "dpo")),
    Claim("data memory, SFT messages", _memory("messages", "sft")),
    Claim("data memory, preference pairs", _memory("pairs", "dpo")),
    Claim("data seconds of --sample 1000", _sample),
    Claim("data tokens/s, SFT messages", _tokens),
)


def _generated(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.jsonl"
    if not path.exists():
        write(path, _ROWS[kind](Random(0)), MEGABYTES)
    return path


def check_claims(wanted: Sequence[str]) -> int:
    """Measures the claims that have one of the words in their name, all where there are none; how many are broken."""
    claims = [claim for claim in CLAIMS if not wanted or any(word in claim.name for word in wanted)]
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        for claim in claims:
            measured = claim.measure(Path(folder))
            if measured is not None:
                figures, kept = measured
                broken += not kept
                print(f"{claim.name:32} {figures}  {'ok' if kept else 'BROKEN'}", flush=True)
    return broken


if __name__ == "__main__":
    print(json.dumps(_MEASURED[sys.argv[1]](*sys.argv[2:])))
