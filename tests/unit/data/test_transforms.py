"""What the keys of a data entry do to rows."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptcli.data.mixture import compile_transforms
from ptcli.data.model import Row
from ptcli.data.transforms import TransformError, compile_transform, selection
from ptcli.methods import METHODS
from ptcli.recipe.model import DataEntry

USER, ANSWER = {"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}


def entry(**keys: Any) -> DataEntry:
    return DataEntry.model_validate({"path": "rows.jsonl", **keys})


def apply(row: Row, **keys: Any) -> Row | None:
    transform = compile_transform(entry(**keys))
    assert transform is not None
    before = repr(row)
    result = transform(row)
    assert repr(row) == before, "the row was changed in place"
    return result


@pytest.fixture
def code(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str, name: str = "f") -> str:
        path = tmp_path / "own.py"
        path.write_text(text)
        return f"{path}:{name}"

    return write


def test_nothing_to_do() -> None:
    assert compile_transform(entry()) is None
    assert compile_transform(entry(shuffle=True, take=3, weight=2.0, split="train[:5]")) is None


# ---------------------------------------------------------------- sharegpt


def test_sharegpt() -> None:
    row = {"id": 7, "system": "Be brief.", "conversations": [turn("human", "2+2="), turn("gpt", "4")]}
    assert apply(row, **{"from": "sharegpt"}) == {
        "id": 7,
        "messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER],
    }


def turn(who: str, text: Any, **rest: Any) -> Row:
    return {"from": who, "value": text, **rest}


@pytest.mark.parametrize(
    ("word", "role"),
    [
        ("human", "user"), ("Human", "user"), ("user", "user"), ("gpt", "assistant"), ("bot", "assistant"),
        ("chatgpt", "assistant"), ("model", "assistant"), ("system", "system"), ("observation", "tool"),
        ("function", "tool"), ("tool", "tool"), ("narrator", "narrator"),
    ],
)  # fmt: skip
def test_who_speaks_in_sharegpt(word: str, role: str) -> None:
    made = apply({"conversations": [turn(word, "x")]}, **{"from": "sharegpt"})
    assert made == {"messages": [{"role": role, "content": "x"}]}


def test_sharegpt_calls() -> None:
    call = turn("function_call", '{"name": "add", "arguments": {"a": 2}}')
    prose = turn("function_call", "add 2 and 2")
    made = apply({"tools": "[]", "conversations": [call, prose, turn("observation", "4")]}, **{"from": "sharegpt"})
    function = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    assert made == {
        "tools": "[]",
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": [function]},
            {"role": "assistant", "content": "add 2 and 2"},
            {"role": "tool", "content": "4"},
        ],
    }


def test_sharegpt_pairs() -> None:
    row = {"conversations": [turn("human", "2+2=")], "chosen": turn("gpt", "4"), "rejected": turn("gpt", "5")}
    assert apply(row, **{"from": "sharegpt"}) == {
        "prompt": [USER],
        "chosen": [ANSWER],
        "rejected": [{"role": "assistant", "content": "5"}],
    }


@pytest.mark.parametrize("column", ["messages", "conversation", "conversations"])
def test_sharegpt_wherever_the_turns_are(column: str) -> None:
    made = apply({column: [turn("human", "2+2="), turn("gpt", "4", weight=None)]}, **{"from": "sharegpt"})
    assert made == {"messages": [USER, ANSWER]}


def test_sharegpt_keeps_a_system_message() -> None:
    system = {"role": "system", "content": "a"}
    made = apply({"system": "b", "conversations": [turn("system", "a"), turn("human", "2+2=")]}, **{"from": "sharegpt"})
    assert made == {"messages": [system, USER]}
    assert apply({"system": None, "conversations": []}, **{"from": "sharegpt"}) == {"messages": []}


def test_sharegpt_without_turns() -> None:
    with pytest.raises(TransformError, match="no turns of from/value; the columns are text"):
        apply({"text": "x"}, **{"from": "sharegpt"})


# ---------------------------------------------------------------- alpaca


def test_alpaca() -> None:
    row = {"instruction": "Add.", "input": "2, 2", "output": "4", "text": "### ...", "id": 3}
    assert apply(row, **{"from": "alpaca"}) == {
        "prompt": [{"role": "user", "content": "Add.\n\n2, 2"}],
        "id": 3,
        "completion": [ANSWER],
    }


def test_alpaca_with_system_and_history() -> None:
    row = {"instruction": "2+2=", "input": "", "output": "4", "system": "Be brief.", "history": [["1+1=", "2"]]}
    made = apply(row, **{"from": "alpaca"})
    assert made
    assert [message["role"] for message in made["prompt"]] == ["system", "user", "assistant", "user"]
    assert made["completion"] == [ANSWER]


def test_alpaca_pairs() -> None:
    made = apply({"instruction": "2+2=", "chosen": "4", "rejected": "5"}, **{"from": "alpaca"})
    assert made == {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "5"}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "`instruction` is missing; the columns are text"),
        ({"instruction": "x", "output": None}, "`output` is not text"),
        ({"instruction": "x", "output": "y", "history": ["z"]}, "`history` is not a list of pairs"),
    ],
)
def test_not_alpaca(row: Row, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        apply(row, **{"from": "alpaca"})


def test_alpaca_beside_messages_becomes_messages() -> None:
    alpaca, chats = entry(**{"from": "alpaca"}), entry(path="chats.jsonl")
    row = {"instruction": "2+2=", "output": "4"}

    def head(of: DataEntry) -> list[Row]:
        return [{"messages": []}] if of.path == "chats.jsonl" else [row]

    def made(entries: list[DataEntry], method: str) -> Row | None:
        transform = compile_transforms(entries, METHODS[method], head=head)[0]
        assert transform
        return transform(row)

    assert made([alpaca, chats], "sft") == {"messages": [USER, ANSWER]}
    assert made([alpaca], "sft") == {"prompt": [USER], "completion": [ANSWER]}
    assert made([alpaca, entry(path="other.jsonl")], "sft") == {"prompt": [USER], "completion": [ANSWER]}
    assert made([alpaca], "gkd") == {"messages": [USER, ANSWER]}
    assert made([alpaca], "grpo") == {"prompt": [USER], "completion": [ANSWER]}


# ---------------------------------------------------------------- columns


def test_rename() -> None:
    assert apply({"a": 1, "b": 2}, rename={"a": "b", "b": "a"}) == {"b": 1, "a": 2}
    assert apply({"b": 2}, rename={"a": "c"}) == {"b": 2}, "a row may lack a column"
    with pytest.raises(TransformError, match="two columns would be called `b`"):
        apply({"a": 1, "b": 2}, rename={"a": "b"})


def test_map_roles() -> None:
    row = {"messages": [{"role": "human", "content": "2+2="}, {"role": "bot", "content": "4"}], "text": "human"}
    assert apply(row, map_roles={"human": "user", "bot": "assistant"}) == {"messages": [USER, ANSWER], "text": "human"}
    assert apply({"a": [], "b": [{"x": 1}, 2], "c": [{"role": 3}]}, map_roles={"human": "user"}) == {
        "a": [],
        "b": [{"x": 1}, 2],
        "c": [{"role": 3}],
    }


def test_parse_json() -> None:
    row = {"messages": '[{"role": "user", "content": "2+2="}]', "tools": None, "answer": "4"}
    assert apply(row, parse_json=["messages", "tools", "absent"]) == row | {"messages": [USER]}
    with pytest.raises(TransformError, match="`messages` is not JSON"):
        apply({"messages": "[{'role': 'user'}]"}, parse_json=["messages"])


def test_columns() -> None:
    assert apply({"a": 1, "b": 2, "c": 3}, columns=["c", "a", "absent"]) == {"c": 3, "a": 1}


# ---------------------------------------------------------------- prompt


def test_prompt_as_a_chat() -> None:
    chat = [{"role": "system", "content": "Put it in \\boxed{}."}, {"role": "user", "content": "{question} ({a.b})"}]
    row = {"question": "2+2=", "a": {"b": 3}, "prompt": "old"}
    assert apply(row, prompt=chat) == row | {
        "prompt": [{"role": "system", "content": "Put it in \\boxed{}."}, {"role": "user", "content": "2+2= (3)"}]
    }


def test_prompt_as_text() -> None:
    assert apply({"my column": "x", "n": [1, "é"]}, prompt="{{a}} {my column}: {n}") == {
        "my column": "x",
        "n": [1, "é"],
        "prompt": '{a} x: [1, "é"]',
    }


def test_braces_in_values_stay() -> None:
    assert apply({"q": "{x} }}"}, prompt="{q}") == {"q": "{x} }}", "prompt": "{x} }}"}


@pytest.mark.parametrize(
    ("row", "message"),
    [({"q": None}, "`q` is null"), ({"other": 1}, r"the row has nothing for `\{q\}`; it has other")],
)
def test_prompt_without_a_value(row: Row, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        apply(row, prompt="{q}")


# ---------------------------------------------------------------- map and filter


def test_map_adds_and_replaces(code: Callable[..., str]) -> None:
    use = code("def f(row):\n    return {'b': (row['a'], 1.5), 'a': 'new'}\n")
    assert apply({"a": "x", "c": 1}, map=use) == {"a": "new", "c": 1, "b": ["x", 1.5]}


def test_map_may_change_its_row(code: Callable[..., str]) -> None:
    use = code("def f(row):\n    row['b'] = row.pop('a')\n    return row\n")
    assert apply({"a": 1, "c": 2}, map=use) == {"c": 2, "b": 1}


def test_map_of_arrays(code: Callable[..., str]) -> None:
    use = code(
        "import array\nclass A:\n    def tolist(self):\n        return [1, 2]\ndef f(row):\n    return {'a': A()}\n"
    )
    assert apply({}, map=use) == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(row):\n    return row['x']\n", r"own\.py:f raised KeyError: 'x'"),
        ("import sys\ndef f(row):\n    sys.exit(3)\n", r"own\.py:f raised SystemExit: 3"),
        ("def f(row):\n    pass\n", "returned nothing, not a dict"),
        ("def f(row):\n    return [row]\n", "returned a list, not a dict"),
        ("def f(row):\n    return {'a': object()}\n", "put a object into `a`"),
        ("import nothing_of_this_name\ndef f(row): ...\n", "cannot be imported: ModuleNotFoundError"),
        ("import sys\nsys.exit(2)\ndef f(row): ...\n", "it exits"),
        ("f = 3\n", "is not a function"),
    ],
)
def test_map_that_fails(text: str, message: str, code: Callable[..., str]) -> None:
    with pytest.raises(TransformError, match=message) as raised:
        apply({"a": 1}, map=code(text))
    assert raised.value.key == "map"


def test_filter(code: Callable[..., str]) -> None:
    use = code("def f(row):\n    row['b'] = 1\n    return len(row['a'])\ndef g(row):\n    pass\n")
    assert apply({"a": "x"}, filter=use) == {"a": "x"}
    assert apply({"a": ""}, filter=use) is None
    with pytest.raises(TransformError, match="returned nothing, neither true nor false"):
        apply({"a": "x"}, filter=use.replace(":f", ":g"))


def test_what_a_function_prints_is_no_result(code: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    apply({}, filter=code("print('at import')\ndef f(row):\n    print('row')\n    return True\n"))
    assert capsys.readouterr() == ("", "at import\nrow\n")


# ---------------------------------------------------------------- all together


def test_the_order_of_the_keys(code: Callable[..., str]) -> None:
    use = code(
        "def f(row):\n    return {'prompt': row['prompt'] + '!'}\n"
        "def g(row):\n    return row['prompt'].endswith('4!') and 'extra' in row\n"
    )
    keys = {
        "columns": ["prompt", "completion"],
        "filter": use.replace(":f", ":g"),
        "map": use,
        "prompt": "{q}{extra}",
        "parse_json": ["extra"],
        "rename": {"question": "q"},
    }
    row = {"question": "2+2=", "extra": "4", "completion": "4"}
    assert apply(row, **keys) == {"prompt": "2+2=4!", "completion": "4"}
    assert apply(row | {"extra": "5"}, **keys) is None


def test_reaches_worker_processes(code: Callable[..., str]) -> None:
    use = code("def f(row):\n    return {'b': row['a'] + 1}\n")
    transform = compile_transform(entry(map=use, rename={"x": "a"}, prompt="{a}", **{"from": None}))
    assert pickle.loads(pickle.dumps(transform))({"x": 1}) == {"a": 1, "b": 2, "prompt": "1"}
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(transform, [{"x": 1}]) == [{"a": 1, "b": 2, "prompt": "1"}]  # type: ignore[arg-type]


def test_selection() -> None:
    assert list(selection(5, None, None)) == [0, 1, 2, 3, 4]
    assert list(selection(5, None, 3)) == [0, 1, 2]
    assert list(selection(2, None, 3)) == [0, 1]
    shuffled = list(selection(100, 0, None))
    assert sorted(shuffled) == list(range(100))
    assert shuffled != list(range(100))
    assert list(selection(100, 0, 7)) == shuffled[:7]
