"""The accelerate config of a run: a shipped one by name or somebody's own file, checked, with its counts filled in.

accelerate refuses unknown keys at the top of a config and silently ignores them inside `deepspeed_config`,
`fsdp_config` and the other sections, where a typo changes how the model is split. The key sets below are those of the
pinned accelerate; a test compares them with its own argument parser. What goes with which method, adapter and rollouts
is in `ptcli.plan.combinations`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import yaml

from ptcli.errors import KeyPath, Problem
from ptcli.plan.arguments import argument, computes_in
from ptcli.plan.deepspeed import DEEPSPEED_FILE, FILE_KEY, agrees, conflicts_inside, for_cpu, read_file
from ptcli.recipe.catalogue import accelerate_keys
from ptcli.recipe.model import Recipe
from ptcli.recipe.suggest import nearest

CONFIGS = Path(__file__).resolve().parents[1] / "accelerate_configs"
KEY: KeyPath = ("launch", "accelerate")

_UNDECLARED = {
    "top": frozenset({"fp16", "dynamo_backend"}),  # rewritten when accelerate reads an old file
    "fsdp_config": frozenset({"fsdp_ignored_modules"}),  # read from the file only: there is no flag
}
"""Keys that accelerate understands without declaring them where the catalogue looks."""
_SECTIONS = {
    "deepspeed_config": "", "fsdp_config": "fsdp_", "parallelism_config": "", "dynamo_config": "dynamo_",
    "fp8_config": "fp8_",
}  # fmt: skip
"""Sections whose keys are looked at, and the prefix of those keys that may be left out."""
_OF_THE_PARSER = {
    "dynamo_config": frozenset(
        f"dynamo_{name}" for name in ("backend", "mode", "use_dynamic", "use_fullgraph", "use_regional_compilation")
    ),
    "fp8_config": frozenset(
        f"fp8_{name}"
        for name in (
            "backend", "use_autocast_during_eval", "margin", "interval", "format", "amax_history_len",
            "amax_compute_algo", "override_linear_precision", "opt_level", "enable_fsdp_float8_all_gather",
            "pad_inner_dim",
        )
    ),
}  # fmt: skip
"""Keys of sections that the catalogue does not have."""
_OFFLOAD = ("none", "cpu", "nvme")
_VALUES: Mapping[str, tuple[Any, ...]] = {
    "zero_stage": (0, 1, 2, 3),
    "offload_optimizer_device": _OFFLOAD,
    "offload_param_device": _OFFLOAD,
    "fsdp_version": (1, 2),
    "fsdp_auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"),
    "fsdp_state_dict_type": ("FULL_STATE_DICT", "SHARDED_STATE_DICT", "LOCAL_STATE_DICT"),
}
"""What a key may say, where accelerate passes anything on."""
_TYPES = ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED")
_DEFAULT_STAGE = 2
"""accelerate's, of a `deepspeed_config` that says none."""
_SAME_IN_DEEPSPEED = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}
_SIZES = ("dp_replicate", "dp_shard", "tp", "cp", "sp")
_REPLICATE, _SHARD = "parallelism_config_dp_replicate_size", "parallelism_config_dp_shard_size"


@dataclass(frozen=True)
class Strategy:
    """An accelerate config before its counts are filled in."""

    name: str
    """As the recipe says it: the name of a shipped config, or a path."""
    config: Mapping[str, Any]
    shipped: bool
    notes: tuple[str, ...] = ()
    deepspeed: Mapping[str, Any] | None = None
    """What the DeepSpeed file says that the config names."""

    @property
    def kind(self) -> str:
        """accelerate's distributed_type."""
        return str(self.config.get("distributed_type"))

    @property
    def single(self) -> bool:
        """True when it starts one process whatever the counts say."""
        return self.kind == "NO"

    def section(self, name: str) -> Mapping[str, Any]:
        """`deepspeed_config` and the like; empty when absent."""
        found = self.config.get(name)
        return found if isinstance(found, Mapping) else {}

    def fsdp(self, name: str) -> Any:
        """A field of `fsdp_config`, which accelerate takes with and without its prefix."""
        section = self.section("fsdp_config")
        return section.get("fsdp_" + name, section.get(name))

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's stage; 0 without DeepSpeed."""
        inside = (self.deepspeed or {}).get("zero_optimization")
        said = self.section("deepspeed_config").get("zero_stage", _DEFAULT_STAGE)
        stage = inside.get("stage", 0) if isinstance(inside, Mapping) else 0 if self.deepspeed is not None else said
        return int(stage or 0) if self.kind == "DEEPSPEED" else 0

    def offloads(self, what: Literal["optimizer", "param"]) -> bool:
        """True where DeepSpeed keeps it in main memory or on a disk."""
        inside = (self.deepspeed or {}).get("zero_optimization")
        section = inside.get(f"offload_{what}") if isinstance(inside, Mapping) else None
        said = section.get("device") if isinstance(section, Mapping) else None
        said = said or self.section("deepspeed_config").get(f"offload_{what}_device")
        return self.kind == "DEEPSPEED" and str(said or "none").lower() != "none"

    def size(self, name: str) -> int:
        """How many ways `parallelism_config` splits (`dp_replicate`, `dp_shard`, `tp`, `cp`, `sp`)."""
        return int(self.section("parallelism_config").get(f"parallelism_config_{name}_size") or 1)

    @property
    def copies(self) -> bool:
        """True for the shipped config that splits within a node and copies from node to node."""
        return self.shipped and bool(self.section("parallelism_config"))


@dataclass(frozen=True)
class Counts:
    """What is filled into a config."""

    processes: int
    """On all nodes together."""
    nodes: int
    main_ip: str | None
    """None: known only where the run starts, and given on the command line."""
    main_port: int
    mixed_precision: str
    device: Literal["cpu", "cuda"]
    auto: Mapping[str, Any] = field(default_factory=dict)
    """What `auto` stands for in `deepspeed_config`: `deepspeed_values`."""


def shipped_names() -> tuple[str, ...]:
    """The names that `launch.accelerate` knows."""
    return tuple(sorted(path.stem for path in CONFIGS.glob("*.yaml")))


def load_strategy(name: str) -> tuple[Strategy | None, list[Problem]]:
    """Read a shipped config by name or a user's by path, and check all that can be checked without counts."""
    names = shipped_names()
    path = CONFIGS / f"{name}.yaml" if name in names else Path(name).expanduser()
    if name not in names and not _is_path(name):
        return None, [_unknown(f"launch.accelerate: there is no config {name!r}", name, names)]
    config, problem = _read(path)
    if config is None:
        return None, [problem] if problem else []
    problems = check_config(config, str(path))
    strategy = _without_multi_cpu(Strategy(name, config, shipped=name in names))
    if not problems and strategy.kind == "DEEPSPEED":
        deepspeed, problems = read_file(strategy.section("deepspeed_config"), path, KEY)
        strategy = replace(strategy, deepspeed=deepspeed)
    return (None, problems) if problems else (strategy, [])


def known_keys(section: str) -> frozenset[str]:
    """Keys that accelerate knows in a section of its config file ("top" for the file itself)."""
    if section in _OF_THE_PARSER:
        return _OF_THE_PARSER[section]
    return accelerate_keys(section) | _UNDECLARED.get(section, frozenset())


def check_config(config: Mapping[str, Any], name: str) -> list[Problem]:
    """Keys that accelerate would refuse or ignore, and kinds of launch that ptcli cannot plan."""
    top = known_keys("top")
    problems = [_unknown(f"{name}: unknown key {key}", key, top) for key in config if key not in top]
    for section in _SECTIONS:
        problems += _check_section(config, name, section, known_keys(section))
    if config.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        problems.append(Problem(f"{name}: compute_environment must be LOCAL_MACHINE", "", KEY))
    if config.get("gpu_ids") not in (None, "all"):
        message = f"{name}: gpu_ids would overwrite the GPU split with absolute indices"
        problems.append(Problem(message, "delete it and say launch.gpus", KEY))
    return problems + _check_kind(config, name) + _check_inside(config, name)


def conflicts(strategy: Strategy, recipe: Recipe, processes: int, device: str) -> list[Problem]:
    """Where the config and the recipe contradict each other; accelerate or DeepSpeed would say so after the model
    is loaded, or not at all."""
    problems = [
        *_count_conflicts(strategy, processes, device),
        *_deepspeed_conflicts(strategy, recipe),
        *_deepspeed_file_conflicts(strategy, recipe, processes, device),
        *_fsdp_conflicts(strategy, recipe),
        *_parallelism_conflicts(strategy, processes, recipe.launch.nodes),
        *_best_model_conflicts(strategy, recipe),
    ]
    return problems + mixed_precision(strategy, recipe)[1]


def sized(strategy: Strategy, processes: int, nodes: int) -> Strategy:
    """The shipped hybrid config with its sizes: a copy of the model on each node, split over its `processes`; on one
    node two copies, each split over half of them."""
    if not strategy.copies:
        return strategy
    copies = nodes if nodes > 1 else 2
    sizes = {_REPLICATE: copies, _SHARD: max(processes * nodes // copies, 1)}
    section = {**strategy.section("parallelism_config"), **sizes}
    note = f"{strategy.name}: {copies} copies of the model, each split over {sizes[_SHARD]} processes"
    return replace(strategy, config={**strategy.config, "parallelism_config": section}, notes=(*strategy.notes, note))


def mixed_precision(strategy: Strategy, recipe: Recipe) -> tuple[str, list[Problem]]:
    """The precision of the run. A user's own config file may decide where the recipe says nothing, though not on a
    CPU: such a file is written for GPUs."""
    own = not strategy.shipped and recipe.launch.device != "cpu"
    said = strategy.config.get("mixed_precision") if own else None
    wanted = computes_in(recipe)
    if said is None or said == wanted:
        return wanted, []
    written = [name for name in ("bf16", "fp16") if recipe.training.get(name) is not None]
    if not written or said == "fp8":
        return said, []
    message = f"{strategy.name} says mixed_precision {said}, and training.{written[0]} makes it {wanted}"
    return wanted, [Problem(message, "make them agree, or leave one out", ("training", written[0]))]


def fill(strategy: Strategy, counts: Counts) -> dict[str, Any]:
    """The config that is really used: counts, address, precision and device are the run's, all else is the file's."""
    config = {key: value for key, value in strategy.config.items() if key not in ("gpu_ids", "fp16", "main_process_ip")}
    config |= {
        "num_processes": counts.processes,
        "num_machines": counts.nodes,
        "machine_rank": 0,
        "main_process_port": counts.main_port,
        "mixed_precision": counts.mixed_precision,
        "use_cpu": counts.device == "cpu",
    }
    if counts.main_ip is not None:
        config["main_process_ip"] = counts.main_ip
    if not config.get("parallelism_config"):
        config.pop("parallelism_config", None)
    if strategy.kind == "MULTI_GPU" and counts.processes == 1:
        config["distributed_type"] = "NO"
    if strategy.kind == "DEEPSPEED":
        launcher = {"deepspeed_multinode_launcher": "standard"}  # the default, pdsh, writes the environment to a file
        section = launcher | dict(strategy.section("deepspeed_config"))
        numbers = {name: value for name, value in counts.auto.items() if section.get(name) == "auto"}
        config["deepspeed_config"] = section | numbers
    return config


def deepspeed_values(recipe: Recipe) -> dict[str, Any]:
    """What transformers puts in the place of `auto`. PPO's trainer makes its Accelerator without it: accelerate then
    fails on `auto`, and clips at 1."""
    values = {name: argument(recipe, own) for name, own in _SAME_IN_DEEPSPEED.items()}
    return {name: value for name, value in values.items() if value is not None}


def config_files(strategy: Strategy, counts: Counts, output_dir: Path, name: str) -> dict[str, str]:
    """The config that is really used, as `name` in the run directory, and the DeepSpeed file that it names, if any."""
    config = fill(strategy, counts)
    if strategy.deepspeed is None:
        return {name: dump_config(config)}
    config["deepspeed_config"] |= {FILE_KEY: str(output_dir / DEEPSPEED_FILE)}
    values = for_cpu(strategy.deepspeed) if counts.device == "cpu" else strategy.deepspeed
    return {name: dump_config(config), DEEPSPEED_FILE: json.dumps(values, indent=2) + "\n"}


def dump_config(config: Mapping[str, Any]) -> str:
    """YAML for RUN/accelerate.yaml. `no` and `NO` come out quoted, so that they stay strings."""
    return yaml.safe_dump(dict(config), sort_keys=False)


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml", ".json"))


def _read(path: Path) -> tuple[dict[str, Any] | None, Problem | None]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        return None, Problem(f"launch.accelerate: {path} {why}", f"shipped: {', '.join(shipped_names())}", KEY)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, Problem(f"launch.accelerate: {path} is not YAML: {' '.join(str(error).split())}", "", KEY)
    if not isinstance(config, dict):
        return None, Problem(f"launch.accelerate: {path} is not a mapping", "", KEY)
    # YAML 1.1 reads an unquoted NO as false.
    for key, text in (("distributed_type", "NO"), ("mixed_precision", "no")):
        if config.get(key) is False:
            config[key] = text
    return config, None


def _without_multi_cpu(strategy: Strategy) -> Strategy:
    """`accelerate config` writes MULTI_CPU for several CPU processes, for which the launcher starts one process."""
    if strategy.kind != "MULTI_CPU":
        return strategy
    note = f"{strategy.name}: MULTI_CPU starts one process only, so MULTI_GPU with use_cpu takes its place"
    config = {**strategy.config, "distributed_type": "MULTI_GPU"}
    return replace(strategy, config=config, notes=(note,))


def _check_section(config: Mapping[str, Any], name: str, section: str, known: frozenset[str]) -> list[Problem]:
    values = config.get(section)
    if values is None:
        return []
    if not isinstance(values, Mapping):
        return [Problem(f"{name}: {section} must be a mapping", "", KEY)]
    prefix = _SECTIONS[section]
    unknown = [key for key in values if key not in known and f"{prefix}{key}" not in known]
    return [
        *(
            _unknown(f"{name}: unknown key {section}.{key}, which accelerate would ignore", str(key), known)
            for key in unknown
        ),
        *_check_values({f"{prefix * (key not in known)}{key}": value for key, value in values.items()}, name, section),
    ]


def _check_values(values: Mapping[str, Any], name: str, section: str) -> Iterator[Problem]:
    for key, legal in _VALUES.items():
        said = values.get(key)
        if said is not None and not _is_one_of(said, legal):
            shown = ", ".join(map(str, legal))
            yield Problem(f"{name}: {section}.{key} {json.dumps(said, default=str)} is none of {shown}", "", KEY)
    for key in (f"parallelism_config_{size}_size" for size in _SIZES):
        said = values.get(key)
        if said is not None and (isinstance(said, bool) or not isinstance(said, int) or said < 1):
            yield Problem(f"{name}: {section}.{key} must be a whole number from 1, not {said!r}", "", KEY)


def _is_one_of(said: Any, legal: tuple[Any, ...]) -> bool:
    """Words in any case, as accelerate takes them; numbers as numbers, or a text that is one."""
    return str(said).lower() in {str(each).lower() for each in legal} and not isinstance(said, bool)


def _check_kind(config: Mapping[str, Any], name: str) -> list[Problem]:
    kind = config.get("distributed_type")
    if kind in _TYPES or (kind == "MULTI_CPU" and config.get("use_cpu")):
        return []
    if kind is None:
        return [Problem(f"{name}: distributed_type is missing", f"one of {', '.join(_TYPES)}", KEY)]
    if kind == "MULTI_CPU":
        message = f"{name}: with distributed_type MULTI_CPU accelerate starts one process, whatever is asked"
        return [Problem(message, "write MULTI_GPU with use_cpu: true", KEY)]
    return [Problem(f"{name}: ptcli cannot plan distributed_type {kind}", f"use one of {', '.join(_TYPES)}", KEY)]


def _check_inside(config: Mapping[str, Any], name: str) -> list[Problem]:
    strategy = Strategy(name, config, shipped=False)
    problems = []
    launcher = strategy.section("deepspeed_config").get("deepspeed_multinode_launcher", "standard")
    if launcher != "standard":
        message = f"{name}: deepspeed_multinode_launcher {launcher} starts processes that ptcli does not see"
        problems.append(Problem(message, "write standard", KEY))
    if _true(strategy.fsdp("cpu_ram_efficient_loading")) and _false(strategy.fsdp("sync_module_states")):
        message = f"{name}: fsdp_cpu_ram_efficient_loading needs fsdp_sync_module_states: true"
        problems.append(Problem(message, "", KEY))
    fsdp2 = strategy.kind == "FSDP" and str(strategy.fsdp("version")) == "2"
    if strategy.section("parallelism_config") and not fsdp2:
        problems.append(Problem(f"{name}: parallelism_config needs FSDP with fsdp_version: 2", "", KEY))
    return problems


def _count_conflicts(strategy: Strategy, processes: int, device: str) -> list[Problem]:
    if strategy.single and processes > 1:
        message = f"launch.accelerate: {strategy.name} is for one process, and the trainer has {processes}"
        return [Problem(message, "use ddp, fsdp2, zero2 or zero3, or give the trainer one GPU", KEY)]
    if device == "cpu" and strategy.kind == "FSDP":
        message = f"launch.accelerate: {strategy.name} is FSDP, which accelerate silently turns into DDP on a CPU"
        return [Problem(message, "use ddp, zero2 or zero3 there", KEY)]
    return []


def _deepspeed_conflicts(strategy: Strategy, recipe: Recipe) -> list[Problem]:
    section = strategy.section("deepspeed_config") if strategy.kind == "DEEPSPEED" else {}
    problems = []
    for name, own in _SAME_IN_DEEPSPEED.items():
        said, wanted = section.get(name, "auto"), argument(recipe, own)
        if said != "none" and not agrees(said, wanted):
            message = f"{strategy.name} says {name} {json.dumps(said)}, and training.{own} is {wanted}"
            key = ("training", own) if own in recipe.training else KEY
            problems.append(Problem(message, f"write {name}: auto", key))
    if strategy.zero_stage == 3 and argument(recipe, "auto_find_batch_size", False):
        message = "auto_find_batch_size does not work with ZeRO-3"
        problems.append(Problem(message, "", ("training", "auto_find_batch_size")))
    return problems + _saves_nothing(strategy, recipe)


def _saves_nothing(strategy: Strategy, recipe: Recipe) -> list[Problem]:
    """Under ZeRO-3 a model's weights are gathered for saving only where that is asked for (user-pain.md C2). Those of
    an adapter always are."""
    file = strategy.deepspeed
    inside = (file or {}).get("zero_optimization")
    name = "stage3_gather_16bit_weights_on_model_save" if file is not None else "zero3_save_16bit_model"
    said = inside.get(name) if isinstance(inside, Mapping) else strategy.section("deepspeed_config").get(name)
    if strategy.zero_stage != 3 or recipe.trains_adapter or _true(said):
        return []
    message = f"{strategy.name}: without {name} ZeRO-3 leaves no weights that can be loaded"
    return [Problem(message, f"write {name}: true" if file is None else f'write "{name}": true', KEY)]


def _deepspeed_file_conflicts(strategy: Strategy, recipe: Recipe, processes: int, device: str) -> list[Problem]:
    if strategy.deepspeed is None:
        return []
    values = for_cpu(strategy.deepspeed) if device == "cpu" else strategy.deepspeed
    return conflicts_inside(values, recipe, processes, KEY)


def _fsdp_conflicts(strategy: Strategy, recipe: Recipe) -> list[Problem]:
    if strategy.kind != "FSDP":
        return []
    problems = []
    if _true(strategy.fsdp("activation_checkpointing")) and argument(recipe, "gradient_checkpointing", True):
        message = f"{strategy.name} has fsdp_activation_checkpointing, and training.gradient_checkpointing is on"
        said = "gradient_checkpointing" in recipe.training
        fix = "set training.gradient_checkpointing: false (TRL's default is true)"
        problems.append(Problem(message, fix, ("training", "gradient_checkpointing") if said else KEY))
    if strategy.fsdp("state_dict_type") == "SHARDED_STATE_DICT" and argument(recipe, "save_only_model", False):
        message = f"training.save_only_model does not work with {strategy.name}'s SHARDED_STATE_DICT"
        problems.append(Problem(message, "use FULL_STATE_DICT", ("training", "save_only_model")))
    return problems


def _best_model_conflicts(strategy: Strategy, recipe: Recipe) -> list[Problem]:
    if strategy.kind not in ("FSDP", "DEEPSPEED") or not argument(recipe, "save_only_model", False):
        return []
    if not argument(recipe, "load_best_model_at_end", False):
        return []
    message = f"training.save_only_model and load_best_model_at_end do not work together with {strategy.name}"
    return [Problem(message, "leave one of them out", ("training", "save_only_model"))]


def _parallelism_conflicts(strategy: Strategy, processes: int, nodes: int) -> list[Problem]:
    if not strategy.section("parallelism_config"):
        return []
    sizes = {name: strategy.size(name) for name in _SIZES}
    total, each = prod(sizes.values()), processes // nodes
    if total == processes and (sizes["dp_shard"] > 1 or total == 1):
        return []
    if strategy.copies:
        return [_cannot_copy(strategy, each, nodes)]
    shown = " x ".join(f"{name} {size}" for name, size in sizes.items() if size != 1) or "1"
    message = f"{strategy.name}: parallelism_config makes {shown} = {total} processes, and there are {processes}"
    if total == processes:
        message = f"{strategy.name}: parallelism_config copies the model to every process, and splits nothing"
    others = total // (sizes["dp_replicate"] * sizes["dp_shard"])
    fits = each % others == 0 and each // others > 1
    fix = f"to split within a node write {_REPLICATE}: {nodes} and {_SHARD}: {each // others}" if fits else ""
    return [Problem(message, fix, KEY)]


def _cannot_copy(strategy: Strategy, each: int, nodes: int) -> Problem:
    if nodes > 1:
        message = f"launch.accelerate: {strategy.name} splits over the GPUs of a node, and each node has one"
    else:
        message = (
            f"launch.accelerate: {strategy.name} on one node makes two copies, each split over half of the GPUs, and "
            f"{each} cannot be halved so"
        )
    return Problem(message, "use fsdp2, which splits over all GPUs, or ddp", KEY)


def _true(value: Any) -> bool:
    return str(value).lower() == "true"


def _false(value: Any) -> bool:
    return str(value).lower() == "false"


def _unknown(message: str, word: str, known: Iterable[str]) -> Problem:
    near = next((key for key in known if key.endswith("_" + word)), None) or nearest(word, known)
    return Problem(message, f"did you mean {near}?" if near else f"known: {', '.join(sorted(known))}", KEY)
