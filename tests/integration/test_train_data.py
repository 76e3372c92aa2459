"""Rows of every kind of path."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ptcli.errors import WorkError
from ptcli.recipe.model import Recipe
from ptcli.train.data import load_data

ROWS = [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(10)]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe(*entries: dict[str, Any], evaluation: Any = None) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "method": "grpo",
            "output_dir": "/x",
            "model": {"path": "builtin:tiny"},
            "data": {"train": list(entries), "eval": evaluation},
        }
    )


def load(*entries: dict[str, Any], evaluation: Any = None) -> Any:
    return load_data(recipe(*entries, evaluation=evaluation))


def write_jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(folder: Path, kind: str) -> Path:
    """The rows as a file or folder of that kind."""
    from datasets import load_dataset

    jsonl = write_jsonl(folder / "rows.jsonl")
    path = folder / f"out.{kind}"
    if kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(jsonl.read_bytes()))
    elif kind == "jsonl.zst":
        path.write_bytes(zstandard.compress(jsonl.read_bytes()))
    else:
        rows = load_dataset("json", data_files=str(jsonl), split="train")
        if kind == "parquet":
            rows.to_parquet(path)
        elif kind == "csv":
            rows.to_csv(path)
        else:
            rows.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl.gz", "jsonl.zst", "parquet", "csv", "saved"])
def test_every_kind_of_file(kind, tmp_path):
    train, evaluation = load({"path": str(write(tmp_path, kind))})
    assert [row["prompt"] for row in train] == [row["prompt"] for row in ROWS]
    assert [str(row["answer"]) for row in train] == [row["answer"] for row in ROWS]
    assert evaluation is None


def test_arrow_files_of_a_saved_dataset(tmp_path):
    (arrow,) = write(tmp_path, "saved").glob("*.arrow")
    assert len(load({"path": str(arrow)})[0]) == 10


def test_a_folder_has_splits(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    write_jsonl(tmp_path / "test.jsonl", ROWS[:3])
    assert len(load({"path": str(tmp_path)})[0]) == 10
    assert len(load({"path": str(tmp_path), "split": "test"})[0]) == 3


def test_a_glob_reads_its_files_in_order(tmp_path):
    for number in (2, 0, 1):
        write_jsonl(tmp_path / f"part-{number}.jsonl", [ROWS[number]])
    train, _ = load({"path": str(tmp_path / "part-*.jsonl")})
    assert train["prompt"][:] == ["0+1=", "1+1=", "2+1="]


def test_rows_that_ship():
    train, _ = load({"path": "builtin:arithmetic", "take": 5})
    assert len(train) == 5
    assert {"prompt", "answer", "solution"} <= set(train.column_names)


def test_slices_renames_shuffles_and_takes(tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl"))
    assert len(load({"path": path, "split": "train[:4]"})[0]) == 4
    assert load({"path": path, "rename": {"answer": "solution"}})[0].column_names == ["prompt", "solution"]
    once = load({"path": path, "shuffle": True, "take": 6})[0]["prompt"][:]
    assert once == load({"path": path, "shuffle": 42, "take": 6})[0]["prompt"][:]
    assert once != load({"path": path, "shuffle": 0, "take": 6})[0]["prompt"][:]
    assert set(once) <= {row["prompt"] for row in ROWS}
    assert len(load({"path": path, "take": 1000})[0]) == 10


def test_entries_are_concatenated_whatever_the_order_of_their_columns(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    turned = [{"answer": row["answer"], "prompt": row["prompt"]} for row in ROWS[2:4]]
    second = write_jsonl(tmp_path / "b.jsonl", turned)
    assert load({"path": str(first)}, {"path": str(second)})[0]["prompt"][:] == ["0+1=", "1+1=", "2+1=", "3+1="]


def test_evaluation_rows_are_held_out_or_given_or_named(tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl"))
    train, held_out = load({"path": path}, evaluation=0.2)
    assert (len(train), len(held_out)) == (8, 2)
    assert not set(train["prompt"][:]) & set(held_out["prompt"][:])
    assert len(load({"path": path}, evaluation=[{"path": path, "take": 3}])[1]) == 3
    named = load({"path": path}, evaluation={"near": [{"path": path, "take": 1}], "far": [{"path": path}]})[1]
    assert {name: len(rows) for name, rows in named.items()} == {"near": 1, "far": 10}


@pytest.mark.parametrize(
    ("text", "name", "entry", "message"),
    [
        ("", "a.jsonl", {}, r"data\.train\.0"),
        ("not json", "a.jsonl", {}, r"data\.train\.0: cannot read .*a\.jsonl"),
        ('{"a": 1}', "a.docx", {}, r"JSON, JSONL, Parquet, CSV or Arrow; found `\.docx`"),
        ('{"a": 1}', "a.jsonl", {"split": "test"}, r'Unknown split "test"'),
        ('{"a": 1}', "a.jsonl", {"rename": {"b": "c"}}, r"data\.train\.0\.rename: there is no column `b`; found a"),
        (
            '{"a": 1, "b": 2}',
            "a.jsonl",
            {"rename": {"b": "a"}},
            r"data\.train\.0\.rename: row 0: two columns would be called `a`",
        ),
    ],
)
def test_what_is_wrong_names_the_entry(text, name, entry, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(WorkError, match=message):
        load({"path": str(tmp_path / name)} | entry)


def test_a_file_that_is_gone_is_not_looked_up_on_the_hub(tmp_path):
    with pytest.raises(WorkError, match="there is no file or folder"):
        load({"path": str(tmp_path / "absent.jsonl")})


def test_entries_that_differ_say_how(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "answer": "1"}])
    second = write_jsonl(tmp_path / "b.jsonl", [{"question": "x", "answer": "1"}])
    with pytest.raises(WorkError, match=r"data\.train\.1: its columns \(question, answer\) .*\(prompt, answer\)"):
        load({"path": str(first)}, {"path": str(second)})
    third = write_jsonl(tmp_path / "c.jsonl", [{"prompt": ["x"], "answer": "1"}])
    with pytest.raises(WorkError, match=r"data\.train\.1: its column types .* `prompt` is a list, .* string"):
        load({"path": str(first)}, {"path": str(third)})


def test_too_few_rows_to_hold_any_out(tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl", ROWS[:2]))
    with pytest.raises(WorkError, match=r"data\.eval: 0\.1 of 2 rows"):
        load({"path": path}, evaluation=0.1)


# --- transforms: what the data checks see is what is trained --------------------------------------------------------

CODE = """
def longer(row):
    return {"length": len(row["question"]), "dates": ("2020-01-01", row["answer"])}

def odd(row):
    return int(row["answer"]) % 2
"""
QUESTIONS = [
    {"question": f"{n}+1=", "answer": str(n + 1), "date": "2020-01-01", "extra": {"a": n} if n % 2 else {"b": "x"}}
    for n in range(10)
]
TURNS = [
    {"conversations": [{"from": "human", "value": f"{n}+1="}, {"from": "gpt", "value": str(n + 1)}]} for n in range(10)
]
ALPACA = [{"instruction": f"{n}+1=", "input": "", "output": str(n + 1)} for n in range(10)]
TEXTS = [{"prompt": json.dumps([{"role": "human", "content": f"{n}+1="}]), "answer": str(n + 1)} for n in range(10)]
PROMPT = [{"role": "system", "content": "Add."}, {"role": "user", "content": "{question} {extra}"}]
TRANSFORMS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "sharegpt": (TURNS, {"from": "sharegpt"}),
    "alpaca": (ALPACA, {"from": "alpaca"}),
    "rename": (QUESTIONS, {"rename": {"question": "prompt"}}),
    "parse and roles": (TEXTS, {"parse_json": ["prompt"], "map_roles": {"human": "user"}}),
    "prompt": (QUESTIONS, {"prompt": PROMPT}),
    "map": (QUESTIONS, {"map": "own.py:longer", "prompt": "{question}"}),
    "filter": (QUESTIONS, {"filter": "own.py:odd", "prompt": "{question}"}),
    "columns": (QUESTIONS, {"rename": {"question": "prompt"}, "columns": ["prompt", "answer"]}),
    "shuffled filter": (QUESTIONS, {"filter": "own.py:odd", "prompt": "{question}", "shuffle": 3, "take": 3}),
    "slice": (QUESTIONS, {"split": "train[20%:-2]", "prompt": "{question}", "shuffle": True, "take": 4}),
    "two slices": (QUESTIONS, {"split": "train[:2]+train[8:]", "prompt": "{question}"}),
    "take": (QUESTIONS, {"filter": "own.py:odd", "prompt": "{question}", "take": 2}),
    "nothing": (QUESTIONS, {"shuffle": True, "take": 7}),
}


def write_as(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file that was written by something else than `datasets`."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        return write_jsonl(path, rows)
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        flat = [{name: value for name, value in row.items() if isinstance(value, str)} for row in rows]
        pyarrow.csv.write_csv(pyarrow.Table.from_pylist(flat), path)
    return path


def checked(given: Recipe) -> list[dict[str, Any]]:
    """The rows that the data checks look at."""
    from ptcli.data.check import _prepare
    from ptcli.data.context import context_of
    from ptcli.data.engine import examine

    entries = _prepare(given, given.data.train, "train")
    examined = examine(entries, context_of(given, "train", tokenizer=False), token_rows=10_000)
    return [row for _, row in examined.token_sample]


def told(rows: Any) -> list[str]:
    """Rows whatever their order. What a row or an object lacks, Arrow has as null."""
    return sorted(json.dumps(without_nulls(row), sort_keys=True) for row in rows)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


FLAT = [name for name, (rows, _) in TRANSFORMS.items() if rows is not TURNS and name != "prompt"]
"""What works on rows without lists and objects, as CSV has them."""
EVERY = [
    (name, kind) for kind in ("jsonl", "json", "parquet", "csv") for name in (FLAT if kind == "csv" else TRANSFORMS)
]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_training_gets_the_rows_that_were_checked(name, kind, tmp_path):
    rows, keys = TRANSFORMS[name]
    (tmp_path / "own.py").write_text(CODE)
    keys = {key: str(tmp_path / value) if key in ("map", "filter") else value for key, value in keys.items()}
    given = recipe({"path": str(write_as(tmp_path, kind, rows)), **keys})
    trained = load_data(given)[0]
    assert len(trained) > 0
    assert told(trained) == told(checked(given))
    assert told(load_data(given)[0]) == told(trained), "also from the cache"
    assert trained[:] == load_data(given)[0][:]


def test_shuffled_rows_are_in_the_order_of_datasets(tmp_path):
    from ptcli.data.transforms import selection

    path = str(write_jsonl(tmp_path / "rows.jsonl"))
    rows = load({"path": path, "prompt": "{prompt}", "shuffle": 5, "take": 6})[0]
    assert rows["prompt"][:] == [ROWS[index]["prompt"] for index in selection(10, 5, 6)]


def test_texts_that_look_like_dates_stay_texts(tmp_path):
    dates = [{"prompt": "When?", "answer": "2020-01-01", "at": "2020-01-01T10:00:00Z"}] * 3
    rows = load({"path": str(write_jsonl(tmp_path / "rows.jsonl", dates))})[0]
    assert list(rows) == dates


def test_a_function_that_changed_is_run_again(tmp_path):
    code, path = tmp_path / "own.py", str(write_jsonl(tmp_path / "rows.jsonl"))
    code.write_text("def first(row):\n    return row['answer'] == '1'\n")
    assert len(load({"path": path, "filter": f"{code}:first"})[0]) == 1
    write_jsonl(tmp_path / "rows.jsonl", ROWS * 2)
    assert len(load({"path": path, "filter": f"{code}:first"})[0]) == 2


def test_rows_that_cannot_be_transformed_are_named(tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"answer": "5"}]))
    with pytest.raises(WorkError, match=r"data\.train\.0\.prompt: row 10: the row has nothing for `\{prompt\}`"):
        load({"path": path, "prompt": "{prompt}"})
    (tmp_path / "own.py").write_text("def none(row):\n    return False\n")
    with pytest.raises(WorkError, match=r"data\.train\.0: no row of .* comes through `filter`"):
        load({"path": path, "filter": f"{tmp_path}/own.py:none"})


def test_the_first_rows_are_transformed_too(tmp_path):
    from ptcli.train.first_rows import first_rows

    (tmp_path / "own.py").write_text(CODE)
    path = str(write_jsonl(tmp_path / "rows.jsonl", QUESTIONS))
    entry = {"path": path, "split": "train[8:]", "filter": f"{tmp_path}/own.py:odd", "prompt": "{question}"}
    rows = first_rows(recipe({**entry, "columns": ["prompt"]}, {"path": path, "columns": ["answer"]}), 4)
    assert rows == [{"prompt": "0+1="}, {"answer": "1"}, {"prompt": "2+1="}, {"answer": "2"}]


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_a_mixture_by_weight(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"a{n}", "answer": "1"} for n in range(40)])
    second = write_jsonl(tmp_path / "b.jsonl", [{"prompt": f"b{n}", "answer": "2"} for n in range(10)])
    entries = ({"path": str(first), "weight": 3}, {"path": str(second), "weight": 1.0})
    rows = load(*entries)[0]["prompt"][:]
    assert rows == load(*entries)[0]["prompt"][:]
    assert {f"a{n}" for n in range(40)} | {f"b{n}" for n in range(10)} == set(rows)
    share = sum(row.startswith("a") for row in rows) / len(rows)
    assert 0.6 < share < 0.9
    assert rows[:40] != sorted(rows)[:40]


def test_a_mixture_of_layouts(tmp_path):
    def mixed(method: str = "sft", **training: Any) -> Recipe:
        tools = [{"messages": [{"role": "user", "content": "x", "name": "z"}], "tools": [{"a": 1}], "source": "p"}]
        paths = [
            write_as(tmp_path, kind, rows) for kind, rows in (("json", ALPACA), ("jsonl", TURNS), ("parquet", tools))
        ]
        entries = [{"path": str(paths[0]), "from": "alpaca"}, {"path": str(paths[1]), "from": "sharegpt"}]
        data = {"train": [*entries, {"path": str(paths[2])}], "eval": {"tasks": entries[:1]}}
        given = recipe(*entries).model_dump() | {"method": method, "data": data}
        return Recipe.model_validate(given)

    train, evaluation = load_data(mixed())
    assert set(train.column_names) == {"messages", "tools"}
    assert len(train) == 21
    assert train[0]["messages"] == [{"role": "user", "content": "0+1="}, {"role": "assistant", "content": "1"}]
    assert train[20]["messages"] == [{"role": "user", "content": "x", "name": "z"}]
    assert evaluation["tasks"].column_names == ["messages"]


def test_rewards_may_read_what_only_some_entries_have(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "answer": "1"}])
    second = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "y", "solution": 1}])
    rows = load({"path": str(first)}, {"path": str(second)})[0]
    assert [dict(row) for row in rows] == [
        {"prompt": "x", "answer": "1", "solution": None},
        {"prompt": "y", "answer": None, "solution": 1},
    ]
