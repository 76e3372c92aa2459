# ruff: noqa: E501 (a table reads better in long lines)
"""Recipes with something wrong in them, and what must be said about each, as data.

A case is a folder of files of which `recipe.yaml` is loaded, with overrides and environment variables. `errors` are all
the errors, in order: the position as it is shown, and texts that the message must have (the nearest key, what to do).
"""

from __future__ import annotations

from dataclasses import dataclass, field

GOOD = """\
method: sft
model: {path: builtin:tiny}
data: {train: [{path: builtin:arithmetic-messages}]}
"""
"""Three lines of a recipe with nothing wrong; cases add line 4 and so on."""

GRPO = """\
method: grpo
model: {path: builtin:tiny}
data: {train: [{path: builtin:arithmetic}]}
rewards: [{use: "trl.rewards:accuracy_reward"}]
"""


@dataclass(frozen=True)
class Broken:
    name: str
    files: str | bytes | dict[str, str | bytes]
    errors: list[tuple[str, ...]]
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    hopeless: bool = False
    """No recipe comes of it, not even one without the faulty keys."""


def error(position: str, *texts: str) -> tuple[str, ...]:
    return (f"recipe.yaml:{position}" if position[:1].isdigit() else position, *texts)


NOT_YAML = [
    Broken("unclosed list", GOOD + "training: {lr: [1, 2\n", [error("4:16", "not valid YAML")], hopeless=True),
    Broken("unclosed quote", GOOD + "name: 'x\n", [error("4:7", "not valid YAML")], hopeless=True),
    Broken("tab", "method: sft\nmodel:\n\tpath: x\n", [error("3:1", "not tabs")], hopeless=True),
    Broken("colon in a value", GOOD + "name: a: b\n", [error("4:8", "quotes")], hopeless=True),
    Broken("value that starts with @", GOOD + "name: @x\n", [error("4:7", "quotes", "`@`")], hopeless=True),
    Broken("reference in braces", GOOD + "training: {run_name: ${name}}\n", [error("4:23", "quotes")], hopeless=True),
    Broken("control character", GOOD + "name: a\0b\n", [error("4:8", "U+0000")], hopeless=True),
    Broken("two documents", GOOD + "---\nname: x\n", [error("4:1", "one YAML document")], hopeless=True),
    Broken("unknown anchor", GOOD + "name: *x\n", [error("4:7", "`*x`")], hopeless=True),
    Broken("recursive alias", GOOD + "training: &x {a: *x}\n", [error("4:18", "contains itself")], hopeless=True),
    Broken("a list", "- method: sft\n", [error("1:1", "must be a mapping", "not a list")], hopeless=True),
    Broken("a number", "\n  5\n", [error("2:3", "must be a mapping", "a single value")], hopeless=True),
    Broken("empty", "", [("recipe.yaml", "empty")], hopeless=True),
    Broken("only comments", "# nothing\n\n# here\n", [("recipe.yaml", "empty")], hopeless=True),
    Broken("not UTF-8", b"method: sft\nname: \xff\n", [("recipe.yaml", "UTF-8", "line 2")], hopeless=True),
    Broken("too large", "#" * (1 << 20) + "\n" + GOOD, [("recipe.yaml", "larger than 1 MiB")], hopeless=True),
    Broken("too deep", GOOD + "training: " + "[" * 60 + "]" * 60, [error("4:61", "levels deep")], hopeless=True),
    Broken("missing", {}, [("recipe.yaml", "no such file")], hopeless=True),
    Broken("folder", {"recipe.yaml/x": ""}, [("recipe.yaml", "folder")], hopeless=True),
]

KEYS = [
    Broken("key that is no line of text", GOOD + '"a\\nb": 1\n', [error("4:1", "unknown key `'a\\nb'`")]),
    Broken("duplicate key", GOOD + "seed: 1\nname: x\nseed: 2\n", [error("6:1", "`seed`", "line 4, column 1")]),
    Broken(
        "duplicate keys, two of them",
        GOOD + "training: {max_steps: 1, max_steps: 2}\nname: a\nname: b\n",
        [error("4:26", "`max_steps`", "line 4, column 12"), error("6:1", "`name`", "line 5")],
    ),
    Broken("python tag", GOOD + "name: !!python/name:os.system x\n", [error("4:7", "!!python/name:os.system")]),
    Broken("custom tags", GOOD + "name: !x a\nseed: !y 1\n", [error("4:7", "`!x`"), error("5:7", "`!y`")]),
    Broken("key that is a list", GOOD + "training: {[a]: 1}\n", [error("4:12", "a key must be text")]),
    Broken("merge of a scalar", GOOD + "training:\n  <<: 5\n", [error("5:7", "`<<`")]),
    Broken("typo of a section", GOOD + "trainin: {}\n", [error("4:1", "`trainin`", "did you mean `training`?")]),
    Broken(
        "typos at three levels",
        "methd: sft\nmodel: {path: builtin:tiny, dtyp: float32}\n"
        "data:\n  train:\n    - {path: builtin:arithmetic, splitt: train}\n",
        [
            error("1:1", "`methd`", "did you mean `method`?"),
            error("2:29", "`model.dtyp`", "did you mean `dtype`?"),
            error("5:34", "`data.train.0.splitt`", "did you mean `split`?"),
        ],
    ),
    Broken("hyphens", GOOD + "output-dir: x\n", [error("4:1", "did you mean `output_dir`?")]),
    Broken("training key at the top", GOOD + "learning_rate: 1e-5\n", [error("4:1", "under `training.learning_rate`")]),
    Broken(
        "launch and peft keys in other sections",
        GOOD + "launch: {tensor_parallel_size: 2}\nguards: {processes: 1}\nquantization: {load_in_4bit: true}\n",
        [
            error("4:10", "under `rollouts.tensor_parallel_size`"),
            error("5:10", "under `launch.processes`"),
            error("6:1", "under `model.quantization`"),
        ],
    ),
    Broken(
        "names of other programs",
        GOOD + "lr: 1\ndataset: x\nlora: {r: 8}\n",
        [error("4:1", "`training.learning_rate`"), error("5:1", "`data.train`"), error("6:1", "`peft`")],
    ),
    Broken(
        "what is not built yet",
        GOOD + "tools: [x]\nevaluate: {x: 1}\n",
        [
            error("4:1", "not built yet"),
            error("5:1", "not built yet"),
        ],
    ),
    Broken(
        "names of other programs inside sections",
        "method: grpo\nmodel: {name: builtin:tiny}\ndata: {train: [{file: x}]}\nrewards: [{name: f}]\n",
        [
            error("2:9", "did you mean `path`?"),
            error("3:17", "did you mean `path`?"),
            error("4:12", "did you mean `use`?"),
        ],
    ),
    Broken(
        "flat config of TRL",
        GOOD + "learning_rate: 1e-5\nlora_r: 8\noptimizer: x\nload_in_4bit: true\nbase_model: a\n",
        [
            error("4:1", "under `training.learning_rate`"),
            error("5:1", "under `peft.r`"),
            error("6:1", "`training.optim`"),
            error("7:1", "`model.quantization.load_in_4bit`"),
            error("8:1", "`model.path`"),
        ],
    ),
    Broken(
        "flat config without a method",
        GOOD.replace("method: sft", "") + "bf16: true\nnum_generations: 8\n",
        [
            error("2:1", "`method` is missing"),
            error("4:1", "`training.bf16`"),
            error("5:1", "`training.num_generations`"),
        ],
        hopeless=True,
    ),
    Broken(
        "flag of vllm beside engine",
        GRPO + "rollouts: {backend: transformers, max_num_seqs: 8}\n",
        [
            error("5:35", "`rollouts.engine.max_num_seqs`"),
        ],
    ),
    Broken(
        "misspelt flag that rollouts own",
        GRPO + "rollouts: {engine: {gpu_memory_utilisation: 1}}\n",
        [
            error("5:21", "`rollouts.gpu_memory_utilization`"),
        ],
    ),
    Broken(
        "method that is a list", GOOD.replace("sft", "[sft]"), [error("1:1", "must be text, not a list")], hopeless=True
    ),
    Broken("key like nothing", GOOD + "xyzzy: 1\n", [error("4:1", "unknown key `xyzzy`", "model, ")]),
]

TYPES = [
    Broken(
        "both half precisions",
        GOOD + "training: {bf16: true, fp16: true}\n",
        [
            error("4:24", "`training.bf16` and `training.fp16`"),
        ],
    ),
    Broken(
        "best model without evaluation",
        GOOD + "training: {load_best_model_at_end: true}\n",
        [
            error("4:12", "save_strategy steps and eval_strategy no"),
        ],
    ),
    Broken(
        "best model of every epoch, saved by steps",
        GOOD.replace("]}", "], eval: 0.1}") + "training: {load_best_model_at_end: true}\n",
        [error("4:12", "save_strategy steps and eval_strategy epoch")],
    ),
    Broken(
        "best model with a misspelt strategy",
        GOOD + "training: {load_best_model_at_end: true, save_strategy: epoch, eval_strategy: epochs}\n",
        [error("4:64", 'did you mean "epoch"')],
    ),
    Broken("section that is a list", GOOD + "training: [1]\n", [error("4:1", "must be a mapping", "not a list")]),
    Broken("model as text", GOOD.replace("{path: builtin:tiny}", "x"), [error("2:1", "must be a mapping", "text 'x'")]),
    Broken("train as mapping", GOOD.replace("[{", "{").replace("}]", "}"), [error("3:8", "must be a list", "mapping")]),
    Broken("bool for a number", GOOD + "seed: true\n", [error("4:1", "a whole number", "not true")]),
    Broken("fraction for a whole number", GOOD + "seed: 1.5\n", [error("4:1", "a whole number", "not the number 1.5")]),
    Broken("octal-looking number", GOOD + "seed: 0123\n", [error("4:1", "a whole number", "the text '0123'")]),
    Broken("quoted number", GOOD + "seed: '7'\n", [error("4:1", "a whole number", "the text '7'")]),
    Broken("null seed", GOOD + "seed:\n", [error("4:1", "a whole number", "not empty")]),
    Broken(
        "several wrong types",
        GOOD + "seed: x\nlaunch: {nodes: two, device: gpu, env: [1]}\nrevision: 1\n",
        [
            error("4:1", "`seed` must be a whole number"),
            error("5:10", "`launch.nodes` must be a whole number", "the text 'two'"),
            error("5:22", "`launch.device` must be one of auto, cpu, cuda"),
            error("5:35", "`launch.env` must be a mapping"),
            error("6:1", "under `model.revision`"),
        ],
    ),
    Broken("choice", GOOD.replace("tiny", "tiny, dtype: bf16"), [error("2:29", "float32, bfloat16", "'bf16'")]),
    Broken("near choice", GOOD.replace("tiny", "tiny, dtype: bfloat"), [error("2:29", "did you mean `bfloat16`?")]),
    Broken("bound", GOOD + "launch: {nodes: 0}\n", [error("4:10", "`launch.nodes` must be at least 1", "not 0")]),
    Broken(
        "empty list", GOOD.replace("[{path: builtin:arithmetic-messages}]", "[]"), [error("3:8", "at least 1 entry")]
    ),
    Broken(
        "two of three data entries",
        "method: sft\nmodel: {path: builtin:tiny}\ndata:\n  train:\n    - 5\n    - {path: builtin:arithmetic-messages}\n"
        "    - {path: builtin:arithmetic-messages, take: -1}\n    - {split: train}\n",
        [
            error("5:7", "`data.train.0`", "a mapping"),
            error("7:43", "`data.train.2.take`", "at least 1"),
            error("8:7", "`path` is missing in `data.train.3`"),
        ],
    ),
    Broken("share of one", GOOD.replace("}]}", "}], eval: 2.0}"), [error("3:54", "`data.eval`", "share")]),
    Broken("no rows to evaluate on", GOOD.replace("}]}", "}], eval: 0}"), [error("3:54", "`data.eval`", "at least 1")]),
    Broken(
        "eval of no kind", GOOD.replace("}]}", "}], eval: yes}"), [error("3:54", "a list or a mapping or a number")]
    ),
    Broken(
        "eval sources",
        GOOD.replace("}]}", "}], eval: {a: [{pth: x}], b: 3}}"),
        [error("3:66", "`data.eval.a.0.pth`", "`path`"), error("3:76", "`data.eval.b` must be a list")],
    ),
    Broken(
        "library fields",
        GOOD + "training: {learning_rte: 1, max_steps: many}\npeft: {rr: 8, target_modules: all-linear}\n",
        [error("4:12", "`learning_rate`"), error("4:29", "`training.max_steps`"), error("5:8", "`peft.rr`")],
    ),
    Broken(
        "engine and quantization fields",
        GRPO.replace("tiny}", "tiny, quantization: {load_in_4bits: true}}")
        + "rollouts: {gpus: 1, engine: {enforce_eagr: true}}\n",
        [error("2:44", "`load_in_4bit`"), error("5:30", "`enforce_eager`")],
    ),
]

METHOD = [
    Broken(
        "misspelt method", GOOD.replace("sft", "sfft"), [error("1:1", "'sfft'", "did you mean `sft`?", "grpo, rloo")]
    ),
    Broken("unknown method", GOOD.replace("sft", "magic"), [error("1:1", "'magic'", "sft, dpo")], hopeless=True),
    Broken("method as a list", GOOD.replace("sft", "[sft]"), [error("1:1", "a list", "sft, dpo")], hopeless=True),
    Broken("no method", GOOD.removeprefix("method: sft\n"), [error("1:1", "`method` is missing")], hopeless=True),
    Broken(
        "no model and no data",
        "# comment\nmethod: sft\nnames: x\n",
        [error("2:1", "`model` is missing"), error("2:1", "`data` is missing"), error("3:1", "`name`")],
    ),
    Broken("no model path", GOOD.replace("path: builtin:tiny", ""), [error("2:1", "`path` is missing in `model`")]),
    Broken("no train", "method: sft\nmodel: {path: builtin:tiny}\ndata: {eval: 0.1}\n", [error("3:1", "`train`")]),
    Broken(
        "sections of other methods",
        GOOD + "rewards: [{use: 'm:f'}]\nteacher: {path: builtin:tiny}\nrollouts: {gpus: 1}\n",
        [
            error("4:1", "`rewards` is not a section of sft", "grpo, rloo"),
            error("5:1", "`teacher` is not a section of sft", "gkd"),
            error("6:1", "`rollouts` is not a section of sft", "not an online method"),
        ],
    ),
    Broken(
        "an infinite weight",
        GRPO.replace('reward"}', 'reward", weight: -.inf}'),
        [error("4:48", "`rewards.0.weight` must be a finite number, not -inf")],
    ),
    Broken(
        "a reward model with what a function has",
        GRPO.replace('trl.rewards:accuracy_reward"', 'builtin:tiny", args: {x: 1}, timeout: 5'),
        [
            error("4:33", "`args` is for a reward function", "builtin:tiny is the path of a reward model"),
            error("4:47", "`timeout` is for a reward function"),
        ],
    ),
    Broken(
        "more weights than rewards",
        GRPO + "training: {reward_weights: [1.0, 0.5]}\n",
        [error("5:12", "`training.reward_weights` is what `rewards` says", "give each entry of `rewards` its own")],
    ),
    Broken(
        "rewards that are none",
        GRPO[: GRPO.index("rewards")]
        + "rewards:\n  - use: acuracy_reward\n  - use: trl.rewards:get_soft_overlong_punishment\n"
        "    args: {max_len: 3}\n  - {use: accuracy_reward, timeout: 0}\n",
        [
            error("5:5", "TRL ships no reward acuracy_reward", "did you mean `accuracy_reward`?"),
            error("6:5", "needs the argument `max_completion_len`"),
            error("7:12", "takes no argument `max_len`", "it takes max_completion_len"),
            error("8:28", "`rewards.2.timeout` must be more than 0"),
        ],
    ),
    Broken("missing rewards", GRPO.replace("rewards", "# "), [error("1:1", "grpo needs the section `rewards`")]),
    Broken("empty rewards", GRPO[: GRPO.index("rewards")] + "rewards: []\n", [error("4:1", "grpo needs", "`rewards`")]),
    Broken(
        "vllm for xpo",
        GOOD.replace("sft", "xpo").replace("-messages", "")
        + "reward_model: {path: builtin:tiny}\nrollouts: {backend: vllm, gpus: 1}\n",
        [error("5:12", "xpo", "vllm", "transformers")],
    ),
    Broken(
        "implied vllm for nash_md, without its reward model",
        GOOD.replace("sft", "nash_md").replace("-messages", "") + "rollouts: {gpus: 1}\n",
        [error("1:1", "needs the section `reward_model`"), error("4:1", "nash_md", "vllm")],
    ),
    Broken(
        "rollouts for ppo",
        GOOD.replace("sft", "ppo").replace("-messages", "")
        + "reward_model: {path: builtin:tiny}\nrollouts: {gpus: 1}\n",
        [error("5:1", "`rollouts` is not a section of ppo", "in the trainer itself")],
    ),
]

REFERENCES = [
    Broken("unknown key", GOOD + "name: x\noutput_dir: runs/${nme}\n", [error("5:1", "`nme`", "${name}")]),
    Broken("unknown nested key", GOOD + "name: ${model.pth}\n", [error("4:1", "`model.pth`", "${model.path}")]),
    Broken("unknown index", GOOD + "name: ${data.train.3.path}\n", [error("4:1", "`data.train.3`", "is a list")]),
    Broken(
        "unset variable", GOOD + "name: ${oc.env:PTCLI_UNSET}\n", [error("4:1", "PTCLI_UNSET is not set", "default")]
    ),
    Broken(
        "near variable",
        GOOD + "name: ${oc.env:MY_RUN_NAM}\n",
        [error("4:1", "`MY_RUN_NAME`")],
        environment={"MY_RUN_NAME": "x"},
    ),
    Broken(
        "resolver", GOOD + "seed: ${oc.decode:'1'}\n", [error("4:1", "`${oc.decode:...}`", "${oc.env:NAME,default}")]
    ),
    Broken(
        "resolvers that build and reach out",
        GOOD + "training: {run_name: '${oc.create:{a: 1}}', seeds: 1}\nname: ${python:os}\n",
        [error("4:12", "oc.create"), error("4:45", "`training.seeds`"), error("5:1", "python")],
    ),
    Broken("unclosed", GOOD + "name: a${b\n", [error("4:1", "cannot be read")]),
    Broken("relative", GOOD + "training: {run_name: '${..name}'}\n", [error("4:12", "from the top")]),
    Broken("itself", GOOD + "name: ${name}\n", [error("4:1", "`name` refers to itself")]),
    Broken(
        "circle of two",
        GOOD + "name: x${training.run_name}\ntraining: {run_name: '${name}'}\n",
        [error("5:12", "refers to itself", "name -> training.run_name -> name")],
    ),
    Broken("mapping inside text", GOOD + "name: a-${model}\n", [error("4:1", "single value", "a mapping")]),
    Broken("wrong type through a reference", GOOD + "seed: ${model.path}\n", [error("4:1", "`seed`", "builtin:tiny")]),
    Broken(
        "wrong type from a variable",
        GOOD + "seed: ${oc.env:MY_SEED}\n",
        [error("4:1", "the text 'x'")],
        environment={"MY_SEED": "x"},
    ),
]

ROWS = "".join(f'{{"question": "{n}+1=", "answer": "{n + 1}"}}\n' for n in range(3))
CODE = "async def a(row): ...\nclass B: ...\nC = 3\ndef none(): ...\ndef two(row, other): ...\ndef good(row): ...\n"


def _entry(keys: str, rest: str = "") -> dict[str, str | bytes]:
    data = f"data:\n  train:\n    - path: rows.jsonl\n{keys}{rest}"
    recipe = "method: grpo\nmodel: {path: builtin:tiny}\nrewards: [{use: 'trl.rewards:accuracy_reward'}]\n" + data
    return {"recipe.yaml": recipe, "rows.jsonl": ROWS, "own.py": CODE}


TRANSFORMS = [
    Broken("layout", _entry("      from: alpacca\n"), [error("7:7", "sharegpt, alpaca", "did you mean `alpaca`?")]),
    Broken(
        "layout that the rows do not have",
        _entry("      from: sharegpt\n"),
        [error("7:7", "no turns of from/value; the columns are question, answer")],
    ),
    Broken("layout, as others call it", _entry("      format: alpaca\n"), [error("7:7", "did you mean `from`?")]),
    Broken(
        "columns that are not there",
        _entry("      rename: {questoin: prompt}\n      parse_json: [tools]\n      columns: [prompt]\n"),
        [
            error("7:16", "there is no column `questoin`", "did you mean `question`?"),
            error("8:20", "there is no column `tools`", "the columns are question, answer"),
            error("9:17", "there is no column `prompt`"),
        ],
    ),
    Broken(
        "two columns of one name",
        _entry("      rename: {question: prompt, answer: prompt}\n"),
        [error("7:34", "`question` and `answer` would both be called `prompt`")],
    ),
    Broken(
        "role", _entry("      map_roles: {human: users}\n"), [error("7:19", "one of system, user", "`user`?")]
    ),
    Broken(
        "place in a prompt",
        _entry("      prompt:\n        - {role: user, content: '{question}, {answr}'}\n        - {role: usr, content: x}\n"),
        [
            error("8:24", "there is no column `answr`", "did you mean `answer`?"),
            error("9:12", "one of system, user", "did you mean `user`?"),
        ],
    ),
    Broken(
        "place in a prompt, of a column",
        _entry("      prompt: [{role: user, content: '{question}, {answr}'}]\n"),
        [error("7:29", "there is no column `answr`", "did you mean `answer`?")],
    ),
    Broken(
        "LaTeX in a prompt",
        _entry("      prompt: '{question} \\frac{1}{2}'\n"),
        [error("7:7", "there is no column `1`", "`{{1}}`"), error("7:7", "there is no column `2`", "`{{2}}`")],
    ),
    Broken("half a place", _entry("      prompt: '{question'\n"), [error("7:7", "a single `{`", "`{{`")]),
    Broken("prompt without quotes", _entry("      prompt: {question}\n"), [error("7:7", "a list or text", "a mapping")]),
    Broken("empty prompt", _entry("      prompt: []\n"), [error("7:7", "is empty")]),
    Broken(
        "functions",
        _entry("      map: own.py:god\n      filter: own.py\n"),
        [error("7:7", "has no `god`", "did you mean `good`?"), error("8:7", "does not name a function", "file.py:function")],
    ),
    Broken("function of a file that is not there", _entry("      map: mine.py:f\n"), [error("7:7", "there is no file")]),
    *(
        Broken(f"function: {text}", _entry(f"      filter: own.py:{name}\n"), [error("7:7", text)])
        for name, text in (
            ("a", "async"), ("B", "is not a function"), ("C", "is not a function"), ("none", "with a row alone"),
            ("two", "with a row alone"),
        )
    ),
    Broken("weight", _entry("      weight: 0\n"), [error("7:7", "must be more than 0")]),
    Broken(
        "weight of one entry alone",
        _entry("      weight: 2\n", "    - path: rows.jsonl\n    - {path: rows.jsonl, weight: 1}\n"),
        [error("8:7", "`data.train.1` has no `weight`", "every entry")],
    ),
    Broken(
        "rule to allow",
        _entry("", "  allow: [duplicate-row, null-value, nonsense]\n"),
        [error("7:11", "no rule `duplicate-row`", "`duplicate-rows`?"), error("7:38", "no rule `nonsense`", "validate-data")],
    ),
    Broken(
        "transforms of an evaluation set",
        _entry("      rename: {question: prompt}\n", "  eval:\n    some: [{path: rows.jsonl, rename: {quest: prompt}}]\n"),
        [error("9:40", "`data.eval.some.0.rename`", "no column `quest`")],
    ),
]  # fmt: skip

SECRETS = [
    Broken("hub token", GOOD + "training: {hub_token: abc}\n", [error("4:12", "`training.hub_token`", "${oc.env:")]),
    Broken(
        "key in env", GOOD + "launch: {env: {WANDB_API_KEY: 0123abc}}\n", [error("4:16", "WANDB_API_KEY", "oc.env")]
    ),
    Broken(
        "tokens by their looks",
        GOOD + "name: hf_abcdefghijklmnop\ntraining: {run_name: sk-abcdefghijklmnopqrstu}\n",
        [error("4:1", "`name` is a secret"), error("5:12", "`training.run_name` is a secret")],
    ),
    Broken(
        "unset secret", GOOD + "training: {hub_token: '${oc.env:MY_TOKEN}'}\n", [error("4:12", "MY_TOKEN is not set")]
    ),
    Broken(
        "secret where none can be kept",
        GOOD + "name: x-${oc.env:MY_TOKEN}\noutput_dir: ${oc.env:MY_TOKEN}\n",
        [error("4:1", "no secret"), error("5:1", "no secret")],
        environment={"MY_TOKEN": "abcdef"},
    ),
    Broken(
        "secret from a variable that does not say so",
        GOOD + "training: {hub_token: '${oc.env:MINE}'}\n",
        [error("4:12", "`training.hub_token` is a secret", "HF_TOKEN")],
        environment={"MINE": "abcdef"},
    ),
    Broken("in an override", GOOD, [("training.hub_token=***", "is a secret")], ("training.hub_token=hf_abcdefgh12",)),
]

PATHS = [
    Broken("too many slashes", GOOD.replace("builtin:tiny", "a/b/c"), [error("2:9", "'a/b/c'", "neither")]),
    Broken("URL", GOOD.replace("builtin:arithmetic-messages", "'https://x.org/y'"), [error("3:17", "URLs")]),
    Broken("empty", GOOD.replace("builtin:tiny", "''"), [error("2:9", "empty")]),
    Broken("no name", GOOD + "name: ''\noutput_dir: ' '\n", [error("4:1", "empty"), error("5:1", "empty")]),
    Broken(
        "model in the working directory",
        {
            "d/recipe.yaml": GOOD.replace("builtin:tiny", "runs/sft"),
            "runs/sft/config.json": "{}",
            "recipe.yaml": "extends: d/recipe.yaml\n",
        },
        [("d/recipe.yaml:2:9", "write ../runs/sft")],
    ),
    Broken(
        "files that are not there",
        GOOD.replace("builtin:tiny", "./m").replace("builtin:a", "./a"),
        [error("2:9", "no model folder"), error("3:17", "there is no")],
    ),
]

BASES = [
    Broken("missing base", "extends: no.yaml\n" + GOOD, [error("1:1", "'no.yaml'", "no such file")]),
    Broken(
        "two missing bases of three",
        {"recipe.yaml": "extends:\n  - no.yaml\n  - base.yaml\n  - gone.yaml\n", "base.yaml": GOOD},
        [error("2:5", "'no.yaml'"), error("4:5", "'gone.yaml'")],
    ),
    Broken("itself", "extends: recipe.yaml\n" + GOOD, [error("1:1", "circle", "recipe.yaml -> recipe.yaml")]),
    Broken(
        "circle of three",
        {
            "recipe.yaml": "extends: a.yaml\n" + GOOD,
            "a.yaml": "seed: 1\nextends: d/b.yaml\n",
            "d/b.yaml": "extends: [../a.yaml]\n",
        },
        [("d/b.yaml:1:11", "circle", "a.yaml -> b.yaml -> a.yaml")],
    ),
    Broken("base that is a folder", {"recipe.yaml": "extends: d\n" + GOOD, "d/x": ""}, [error("1:1", "a folder")]),
    Broken("extends a mapping", "extends: {a: 1}\n" + GOOD, [error("1:1", "`extends`", "a mapping")]),
    Broken("reference in extends", "extends: ['${name}.yaml']\n" + GOOD, [error("1:11", "`extends`")]),
    Broken(
        "typo in a base",
        {"recipe.yaml": "extends: base.yaml\nseed: 1\n", "base.yaml": "\n" + GOOD + "trainin: {}\n"},
        [("base.yaml:5:1", "did you mean `training`?")],
    ),
    Broken(
        "typo in the base of a base, wrong type in the recipe",
        {
            "recipe.yaml": "extends: d/b.yaml\nseed: x\n",
            "d/b.yaml": "extends: ../e/c.yaml\nlaunch: {nodes: 0}\n",
            "e/c.yaml": GOOD + "training: {max_step: 1}\n",
        },
        [error("2:1", "`seed`"), ("d/b.yaml:2:10", "at least 1"), ("e/c.yaml:4:12", "`max_steps`")],
    ),
    Broken(
        "base that is not YAML",
        {"recipe.yaml": "extends: base.yaml\n" + GOOD, "base.yaml": "a: [\n"},
        [("base.yaml:1:4", "not valid YAML")],
    ),
    Broken("empty base", {"recipe.yaml": "extends: b.yaml\n" + GOOD, "b.yaml": ""}, [("b.yaml", "empty")]),
    Broken(
        "unset variable in a base, overridden elsewhere",
        {"recipe.yaml": "extends: b.yaml\n" + GOOD, "b.yaml": "seed: ${oc.env:PTCLI_UNSET}\nlaunch: {nodes: 1}\n"},
        [("b.yaml:1:1", "PTCLI_UNSET is not set"), ("launch.nodes=0", "at least 1")],
        ("launch.nodes=0",),
    ),
    Broken(
        "missing key of a base's section",
        {
            "recipe.yaml": "extends: b.yaml\n" + GOOD.replace("path: builtin:tiny", ""),
            "b.yaml": "model: {dtype: float32}\n",
        },
        [error("3:1", "`path` is missing in `model`")],
    ),
]

GUARDS = [
    Broken(
        "guard: no", GOOD + "guards: {kl: no}\n", [error("4:10", "off, warn, stop or a mapping", "did you mean `off`?")]
    ),
    Broken("guard: a number", GOOD + "guards: {kl: 3}\n", [error("4:10", "off, warn, stop or a mapping")]),
    Broken("guard: empty", GOOD + "guards: {kl: }\n", [error("4:10", "off, warn, stop or a mapping")]),
    Broken("guard: a typo", GOOD + "guards: {kl: wran}\n", [error("4:10", "did you mean `warn`?")]),
    Broken("guard of another name", GOOD + "guards: {nan: stop}\n", [error("4:10", "did you mean `non_finite`?")]),
    Broken(
        "guard: its fields",
        GOOD + "guards:\n  entropy: {action: of, abov: 2, below: 1.0, patience: 0}\n",
        [
            error("5:13", "`guards.entropy.action`", "did you mean `off`?"),
            error("5:25", "did you mean `above`?"),
            error("5:34", "must be less than 1"),
            error("5:46", "must be at least 1"),
        ],
    ),
    Broken(
        "guard: kl without beta", GRPO + "guards: {kl: warn}\n", [error("5:10", "training.beta", "leave guards.kl out")]
    ),
]

_OTHER = {
    "other/config.json": '{"vocab_size": 272, "architectures": ["LlamaForCausalLM"]}',
    "other/model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "other/tokenizer.json": '{"model": {"type": "BPE", "vocab": {"x": 0}, "merges": []}, "added_tokens": []}',
}
"""A model of the shipped one's size with other tokens."""
_GKD = GOOD.replace("sft", "gkd") + "teacher: {path: other}\n"
_CLASSIFIER = {"other/config.json": '{"vocab_size": 272, "architectures": ["LlamaForSequenceClassification"]}'}

MODELS = [
    Broken(
        "a template that does not parse",
        {
            "recipe.yaml": GOOD.replace("tiny}", "tiny, chat_template: t.jinja}"),
            "t.jinja": "{% for m in messages %}\n{{ m.content }\n{% endfor %}\n",
        },
        [error("2:29", "t.jinja:2 does not parse: unexpected '}'")],
    ),
    Broken(
        "a template that leaves out what is said",
        {
            "recipe.yaml": GOOD.replace("tiny}", "tiny, chat_template: t.jinja}"),
            "t.jinja": "{% for m in messages %}{{ m.text }}{% endfor %}",
        },
        [error("2:29", "t.jinja leaves out the content of a user's message")],
    ),
    Broken(
        "a model's own template that does not parse",
        {"recipe.yaml": GOOD.replace("builtin:tiny", "other"), **_OTHER, "other/chat_template.jinja": "{% if %}"},
        [error("2:9", "chat_template.jinja:1 does not parse", "model.chat_template")],
    ),
    Broken(
        "tokens that the tokenizer has not",
        GOOD.replace("tiny}", "tiny, eos_token: '<|imend|>', pad_token: '<p>'}"),
        [
            error("2:29", "`model.eos_token`", "no token '<|imend|>'", "did you mean '<|im_end|>'?"),
            error("2:53", "`model.pad_token`", "no token '<p>'"),
        ],
    ),
    Broken(
        "a teacher of one size with other tokens",
        {"recipe.yaml": _GKD, **_OTHER},
        [error("4:11", "`teacher` and `model` have different vocabularies", "(272)", "token 0 is 'x' there")],
    ),
    Broken(
        "a teacher of another size",
        {"recipe.yaml": _GKD, **_OTHER, "other/config.json": '{"vocab_size": 300}'},
        [error("4:11", "`teacher` has a vocabulary of 300 tokens", "`model` one of 272")],
    ),
    Broken(
        "a reward model with another tokenizer than the policy",
        {
            "recipe.yaml": GRPO.replace("grpo", "ppo").replace("rewards: [{use", "#") + "reward_model: {path: other}\n",
            **_OTHER,
        },
        [error("5:16", "`reward_model` and `model` have different vocabularies", "reads the policy's tokens")],
    ),
    Broken(
        "classifiers as rewards",
        {
            "recipe.yaml": GRPO.replace("rewards: [", "rewards: [{use: other}, "),
            **_OTHER,
            **_CLASSIFIER,
        },
        [error("4:12", "a classifier of 2 labels", "one number a text")],
    ),
    Broken("from: a word that is none", GOOD.replace("tiny}", "tiny, from: scratch}"), [error("2:29", "weights, config")]),
    Broken(
        "from: config of an adapter",
        {"recipe.yaml": GOOD.replace("builtin:tiny", "other").replace("}\n", ", from: config}\n", 1),
         "other/adapter_config.json": '{"base_model_name_or_path": "org/base", "peft_type": "LORA"}',
         "other/adapter_model.safetensors": b"\x02\0\0\0\0\0\0\0{}"},
        [error("2:9", "is an adapter", "no config to make a model from"), error("2:9", "`adapter: continue`")],
    ),
]  # fmt: skip

OVERRIDES = [
    Broken("typo", GOOD, [("training.learning_rat=1", "`learning_rate`")], ("training.learning_rat=1",)),
    Broken("wrong type", GOOD, [("seed=abc", "`seed` must be a whole number")], ("seed=abc",)),
    Broken("no equals sign", GOOD, [("--seed", "KEY=VALUE")], ("--seed",)),
    Broken("no key", GOOD, [("=1", "KEY=VALUE"), ("a..b=1", "KEY=VALUE")], ("=1", "a..b=1")),
    Broken("index", GOOD, [("data.train.1.path=x", "1 entry", "no 1")], ("data.train.1.path=x",)),
    Broken("name for an index", GOOD, [("data.train.path=x", "not an index", "data.train.0")], ("data.train.path=x",)),
    Broken("key of a scalar", GOOD, [("method.x=1", "`method`", "no key `x`")], ("method.x=1",)),
    Broken("no list there", GOOD, [("data.eval.0.path=x", "no list `data.eval`")], ("data.eval.0.path=x",)),
    Broken("not YAML", GOOD, [("training={a", "not valid YAML")], ("training={a",)),
    Broken("unset variable", GOOD, [("name=${oc.env:PTCLI_UNSET}", "not set")], ("name=${oc.env:PTCLI_UNSET}",)),
    Broken("unknown section", GOOD, [("trainin.x=1", "did you mean `training`?")], ("trainin.x=1",)),
    Broken("missing base", GOOD, [("extends=no.yaml", "no such file")], ("extends=no.yaml",)),
    Broken(
        "file and overrides at once",
        GOOD + "sed: 1\n",
        [error("4:1", "`seed`"), ("launch.nodes=x", "a whole number"), ("lunch.nodes=1", "`launch`")],
        ("launch.nodes=x", "lunch.nodes=1"),
    ),
]

GROUPS = {
    "yaml": NOT_YAML,
    "keys": KEYS,
    "types": TYPES,
    "method": METHOD,
    "references": REFERENCES,
    "transforms": TRANSFORMS,
    "secrets": SECRETS,
    "paths": PATHS,
    "bases": BASES,
    "guards": GUARDS,
    "models": MODELS,
    "overrides": OVERRIDES,
}
