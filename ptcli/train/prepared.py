"""Rows as tokens, made once before the launch, so that no rank waits while another tokenises. Light until it is used.

    python -m ptcli.train.prepared RECIPE RESULT    what `ptcli train` runs before the trainer, in a process of its own

A prepared folder of the cache is named by all that went into it: rows, tokenizer, template, method, the arguments that
are read, versions. Each rank loads it, prepares the first rows again and compares; only where all ranks agree is it
used, and the trainer then takes these rows as they are. Where there is none, the trainer prepares as it always does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ptcli.errors import PtcliError
from ptcli.methods import METHODS, Method
from ptcli.recipe.data_files import local_files
from ptcli.recipe.loading import load_recipe
from ptcli.recipe.model import DataEntry, Recipe
from ptcli.train.cache import drop, find, key_of, make
from ptcli.train.preparing import PREPARES, READS, READS_FOR_NEIGHBOURS, TRAIN, Sets

LARGE = 64 * 2**20
"""Bytes of training data beyond which one trainer process is worth a process before it, too."""
SMALL = 2**20
"""Bytes beyond which several are: of less, they wait for one another less than the process before them takes."""
FEW = 1000
"""Rows of an entry that are as little, whatever the size of its files."""

KIND = "prepared"
_PACKAGES = ("ptcli", "trl", "transformers", "tokenizers", "datasets")
_ABOUT = "about.json"
"""The names of the sets, in the order of their folders, and the first rows of each as tokens."""
_IMAGES = frozenset({"image", "images"})
_EVAL = "eval"


def worth_preparing(recipe: Recipe) -> bool:
    """Whether to prepare before the launch: when several processes read the rows, or the rows are many.

    Otherwise nobody waits for the one trainer process, which prepares while it starts, and of few rows nobody notices.
    `recipe`: the resolved one.
    """
    if METHODS[recipe.method].trainer not in PREPARES:
        return False
    size = sum(_bytes(entry) for entry in recipe.data.train)
    return size > (SMALL if _processes(recipe) > 1 else LARGE)


def _bytes(entry: DataEntry) -> int:
    """Bytes of an entry's files; many, but not too many for one process, where they are on the hub."""
    if entry.take is not None and entry.take <= FEW:
        return 0
    files = local_files(entry.path)
    return sum(file.stat().st_size for file in files) if files else LARGE


def _processes(recipe: Recipe) -> int:
    launch = recipe.launch
    gpus = launch.gpus if isinstance(launch.gpus, int) else len(launch.gpus or ())
    return (launch.processes or gpus or 1) * launch.nodes


# --- before the launch -----------------------------------------------------------------------------------------------


def prepare(recipe: Recipe) -> Path | None:
    """The folder with the recipe's rows as tokens, made where it is not there. None for what trainers do on the fly.

    Raises WorkError for data that cannot be read, and whatever TRL raises for rows that it cannot prepare.
    """
    row = METHODS[recipe.method]
    if row.trainer not in PREPARES:
        return None
    from ptcli.train.build import build_arguments
    from ptcli.train.processors import load_processor
    from ptcli.train.rendered import load_rows

    arguments = build_arguments(recipe, row, by_path=False)
    processor = load_processor(recipe.model, generates=row.online)
    sets = as_sets(*load_rows(recipe, processor))
    if _on_the_fly(sets, arguments):
        return None
    return make(
        KIND, _key(row, sets, arguments, processor), lambda folder: _write(row, sets, arguments, processor, folder)
    )


def as_sets(train: Any, evaluation: Any) -> Sets:
    if evaluation is None:
        return {TRAIN: train}
    named = evaluation if isinstance(evaluation, dict) else None
    return {TRAIN: train} | (
        {f"{_EVAL}.{name}": rows for name, rows in named.items()} if named else {_EVAL: evaluation}
    )


def _on_the_fly(sets: Sets, arguments: Any) -> bool:
    """Whether the trainer turns rows into tokens batch by batch: images, and who says so."""
    skips = (getattr(arguments, "dataset_kwargs", None) or {}).get("skip_prepare_dataset", False)
    return bool(skips) or any(_IMAGES & set(rows.column_names) for rows in sets.values())


def _write(row: Method, sets: Sets, arguments: Any, processor: Any, folder: Path) -> None:
    with _without_cache():
        prepared = PREPARES[row.trainer](sets, arguments, processor)
        for index, rows in enumerate(prepared.values()):
            rows.save_to_disk(str(folder / str(index)))
    about = {"sets": list(prepared), "first": _first(row, sets, arguments, processor)}
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Steps between rows and tokens are not kept: only what comes of them."""
    import datasets

    enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_caching()


def _first(row: Method, sets: Sets, arguments: Any, processor: Any) -> dict[str, Any]:
    """The first row of each set as tokens, made in memory."""
    alone = {
        name: rows.select(range(1), keep_in_memory=True).flatten_indices(keep_in_memory=True)
        for name, rows in sets.items()
    }
    with _without_progress():
        prepared = PREPARES[row.trainer](alone, arguments, processor)
    return dict(json.loads(json.dumps({name: list(rows) for name, rows in prepared.items()}, default=str)))


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    """One row is no progress: in the log it would look as if all were tokenized once more."""
    import datasets

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.enable_progress_bars()


# --- the key ---------------------------------------------------------------------------------------------------------


def _key(row: Method, sets: Sets, arguments: Any, processor: Any) -> str:
    read = READS + (READS_FOR_NEIGHBOURS if row.data.kl_batches else ())
    return key_of(
        {
            "versions": {name: version(name) for name in _PACKAGES},
            "trainer": row.trainer,
            "rows": {name: rows._fingerprint for name, rows in sets.items()},
            "tokenizer": _fingerprint(processor),
            "arguments": {name: getattr(arguments, name) for name in read if hasattr(arguments, name)},
        }
    )


def _fingerprint(processor: Any) -> str:
    """What tells a tokenizer from others: vocabulary, rules, special tokens, template."""
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    for state in ("truncation", "padding"):  # what the last call asked for
        rules.pop(state, None)
    settings = {
        name: value for name, value in tokenizer.init_kwargs.items() if "path" not in name and "file" not in name
    }
    about = {
        "class": [type(processor).__name__, type(tokenizer).__name__],
        "rules": rules,
        "tokens": tokenizer.special_tokens_map,
        "settings": settings,
        "template": processor.chat_template,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


# --- in each rank ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """The rows of a run as they are and as tokens."""

    raw: Sets
    tokens: Sets

    @contextlib.contextmanager
    def kept_by(self, trainer_class: Any) -> Iterator[tuple[Any, Any]]:
        """Training and evaluation rows for the trainer's constructor, which keeps the tokens while this lasts."""
        own = "_prepare_dataset" in vars(trainer_class)
        with self._instead_of_preparing(trainer_class) if own else self._left_alone():
            yield from_sets(self.raw if own else self.tokens)

    @contextlib.contextmanager
    def _instead_of_preparing(self, trainer_class: Any) -> Iterator[None]:
        prepare = trainer_class._prepare_dataset
        known = {id(rows): self.tokens[name] for name, rows in self.raw.items()}

        def keep(trainer: Any, dataset: Any, *rest: Any, **named: Any) -> Any:
            tokens = known.get(id(dataset))
            return prepare(trainer, dataset, *rest, **named) if tokens is None else tokens

        trainer_class._prepare_dataset = keep
        try:
            yield
        finally:
            trainer_class._prepare_dataset = prepare

    @contextlib.contextmanager
    def _left_alone(self) -> Iterator[None]:
        """For constructors that map their rows themselves: these rows are mapped already."""
        from datasets import Dataset

        mapped = {id(rows) for rows in self.tokens.values()}
        originals = {name: getattr(Dataset, name) for name in ("map", "filter")}

        def leave(original: Any) -> Any:
            return lambda rows, *rest, **named: rows if id(rows) in mapped else original(rows, *rest, **named)

        for name, original in originals.items():
            setattr(Dataset, name, leave(original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(Dataset, name, original)


def from_sets(sets: Sets) -> tuple[Any, Any]:
    """The training rows, and the evaluation rows, or named sets of them, or None."""
    named = {name.partition(".")[2]: rows for name, rows in sets.items() if name.startswith(f"{_EVAL}.")}
    return sets[TRAIN], named or sets.get(_EVAL)


def load(recipe: Recipe, arguments: Any, processor: Any, train: Any, evaluation: Any) -> Prepared | None:
    """What was prepared for these rows; None where any rank of the run has nothing, or has something else.

    To be called by all ranks at the same time.
    """
    row, sets = METHODS[recipe.method], as_sets(train, evaluation)
    if row.trainer not in PREPARES or _on_the_fly(sets, arguments):
        return None
    folder = find(KIND, _key(row, sets, arguments, processor))
    if not _all_agree(folder is not None):
        return None
    assert folder is not None
    tokens = _read(folder)
    if _all_agree(tokens is not None and _is_same(row, sets, arguments, processor, folder)):
        return Prepared(sets, tokens) if tokens else None
    drop(folder)
    return None


def _all_agree(mine: bool) -> bool:
    from accelerate.utils import gather_object

    return all(gather_object([mine]))


def _read(folder: Path) -> Sets | None:
    from datasets import load_from_disk

    try:
        names = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["sets"]
        return {name: load_from_disk(str(folder / str(index))) for index, name in enumerate(names)}
    except Exception:  # cut short, or of another release: it is made again
        return None


def _is_same(row: Method, sets: Sets, arguments: Any, processor: Any, folder: Path) -> bool:
    try:
        first = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["first"]
        return bool(first == _first(row, sets, arguments, processor))
    except Exception:  # the trainer, which then prepares itself, says it better
        return False


# --- the process -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Prepare the recipe named in `argv`; what went wrong goes to the result as `{"error": str | null}`."""
    recipe_file, result = map(Path, argv)
    recipe = load_recipe(recipe_file, references=lambda _: []).recipe
    assert recipe is not None, f"{recipe_file} was written by the plan"
    error = None
    try:
        prepare(recipe)
    except PtcliError as problem:
        error = str(problem)
    except Exception as problem:  # whatever TRL raises for a row
        error = f"{type(problem).__name__}: {problem}"
    result.write_text(json.dumps({"error": error}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
