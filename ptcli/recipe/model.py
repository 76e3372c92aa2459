"""What a recipe may say: one frozen pydantic model a section, unknown keys refused everywhere.

A `Recipe` is what `ptcli.recipe.loading.load_recipe` returns: `extends` merged, interpolation done, overrides applied,
local paths absolute. `training`, `peft` and the like are passed on to the library's own dataclass; their keys and types
are checked by `ptcli.recipe.catalogue`, not here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Dtype = Literal["float32", "bfloat16", "float16"]
GPUs = int | list[int | str]
Gpus = Annotated[GPUs, Field(description="A count, or a list of indices or UUIDs of visible GPUs.")]


class Section(BaseModel):
    """Base of every section."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        serialize_by_alias=True,
    )


def keys_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The section's fields by the key that a recipe writes, which for a word of Python's own is not their name."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


class ModelSpec(Section):
    """A model: the one that is trained, its reference, a reward or value model, or a teacher."""

    path: str
    """A hub id, a folder, `builtin:NAME`, or a run directory (its final model; `RUN@500` is its checkpoint 500)."""
    from_: Literal["weights", "config"] = Field(default="weights", alias="from")
    """What of `path` is taken: its weights, or only its config (random weights, from the recipe's seed)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Dtype | None = None
    """Type the weights are held in while training. Default: float32, mixed precision being `training.bf16`."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, or a kernel repository, as in `from_pretrained`."""
    quantization: dict[str, Any] | None = None
    """Fields of transformers' BitsAndBytesConfig, as `{load_in_4bit: true}`."""
    adapter: Literal["continue", "merge", "new"] | None = None
    """What to do when `path` is itself a PEFT adapter: train it on, merge it first, or put a new one on its base."""
    chat_template: str | None = None
    """A Jinja file, or the name of a template that TRL ships."""
    eos_token: str | None = None
    """End-of-sequence token, when the tokenizer's own is not what ends a turn."""
    pad_token: str | None = None
    """Padding token, when the tokenizer has none or it equals the end-of-sequence token."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""
    init_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `from_pretrained`."""


class PromptMessage(Section):
    """One message of a prompt that is made from columns."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who says it."""
    content: str
    """What is said. `{column}` stands for the row's value, `{{` and `}}` for braces; quote it in YAML."""


class DataEntry(Section):
    """One source of rows. What is done to each row is done in the order of these keys."""

    path: str
    """A hub id, a file, a folder, a glob, or `builtin:NAME`."""
    name: str | None = None
    """Configuration of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    split: str = "train"
    """Split of a hub dataset or folder; slices as in `train[:1000]` work."""
    from_: Literal["sharegpt", "alpaca"] | None = Field(default=None, alias="from")
    """A layout to convert. `sharegpt`: conversations of from/value become messages. `alpaca`: instruction, input and
    output become a prompt and a completion, so that only the output is trained, or messages beside such."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Columns to rename, old name to new name."""
    map_roles: dict[str, Literal["system", "user", "assistant", "tool", "developer"]] = Field(default_factory=dict)
    """Roles of messages to replace, as `{human: user, bot: assistant}`, in every column that holds messages."""
    parse_json: list[str] = Field(default_factory=list)
    """Columns whose text is JSON, to be read as what it says: a chat that was stored as text becomes a chat."""
    prompt: list[PromptMessage] | str | None = None
    """What becomes the column `prompt`: a chat, or a text, with `{column}` where a column's value goes."""
    map: str | None = None
    """`file.py:function`, which takes a row as a dict and returns the columns to add or replace."""
    filter: str | None = None
    """`file.py:function`, which takes a row as a dict and returns whether to keep it."""
    columns: list[str] = Field(default_factory=list)
    """Columns to keep. Default: all of them."""
    shuffle: bool | int = False
    """Shuffle the rows, with the recipe's seed or with this one."""
    take: Annotated[int, Field(ge=1)] | None = None
    """Keep the first N rows, after shuffling."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How often rows are drawn from this entry, relative to the others, which then need a weight, too. Rows are drawn
    until every entry was read whole; those of an entry that ends earlier come again. Default: entries follow one
    another."""


class DataSpec(Section):
    """The rows to train and to evaluate on."""

    train: Annotated[list[DataEntry], Field(min_length=1)]
    """Sources of the training rows, concatenated in this order, or mixed by their weights."""
    eval: list[DataEntry] | dict[str, list[DataEntry]] | float | Annotated[int, Field(ge=1)] | None = None
    """Sources of the evaluation rows, named lists of them, or what to hold out: a fraction or a number of rows."""
    allow: list[str] = Field(default_factory=list)
    """Rules of `ptcli validate-data` whose errors are accepted, by their ids, as `[duplicate-rows]`."""


class RewardSpec(Section):
    """A reward: a function, or a reward model."""

    use: str
    """`package.module:function`, `file.py:function`, a reward that TRL ships by its name, or a reward model's path."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Factor of this reward in the sum."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments that are bound to the function; those of a class or function that makes one, for making it."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds a call may take. It then runs in a process of its own; a longer call is killed and gives no rewards."""


class RolloutsSpec(Section):
    """Where the completions of an online method come from."""

    backend: Literal["vllm", "transformers"] | None = None
    """`vllm`, or `transformers` (generation in the trainer itself). Default: vllm when this section says anything."""
    mode: Literal["server", "colocate"] = "server"
    """vLLM as a server on GPUs of its own, or inside the trainer."""
    gpus: Gpus | None = None
    """GPUs of the server: a count (the first N visible), or a list of indices or UUIDs."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that share one copy of the model."""
    data_parallel_size: Annotated[int, Field(ge=1)] | None = None
    """Copies of the model. Default: GPUs / tensor_parallel_size."""
    dtype: Dtype | None = None
    """Type the server computes in. Default: what the trainer computes in."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Longest prompt plus completion, in tokens. Default: the model's own limit."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each server GPU's memory that vLLM may take. Default: 0.9."""
    nodes: Annotated[int, Field(ge=0, le=1)] = 0
    """1: the server has a node for itself, the last one, at the address `host`. Default: it shares node 0."""
    host: str = "127.0.0.1"
    """Address that the server listens on. Anything but loopback exposes unauthenticated control endpoints."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the server. Default: a free one."""
    group_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port over which trainer and server meet for the weight sync. Default: a free one."""
    url: str | None = None
    """A server that already runs (`ptcli serve-rollouts`), as `http://127.0.0.1:8000`."""
    startup_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds the server may take to become ready. Default: 1800, or 300 in smoke."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Any other flag of `vllm serve`, as `{enable_prefix_caching: true}`."""


class SlurmSpec(Section):
    """What a job of `ptcli train --launcher slurm` asks for. Its nodes and GPUs are those of the recipe."""

    account: str | None = None
    """Account that the job is charged to."""
    partition: str | None = None
    """Partition that it runs in. Default: the cluster's."""
    time: str | None = None
    """Longest that it may run, as Slurm writes it: `90` (minutes), `24:00:00` (hours first), `2-00` (days, hours).
    `12:00` is twelve minutes. Default: the partition's."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that its nodes must have, as `a100&nvlink`."""
    container: str | None = None
    """Image to run ptcli in, which must have it installed: a file or a registry's, for Slurm's plugin pyxis."""
    container_mounts: list[str] = Field(default_factory=list)
    """Folders that are seen inside, as `/data` or `/scratch/me:/data:ro`. The run directory always is."""
    modules: list[str] = Field(default_factory=list)
    """Environment modules that are loaded first."""
    requeue: bool = False
    """Queue the job again, to go on from its checkpoint, when its time is up before the training is done, or a node
    fails."""
    signal_seconds: Annotated[int, Field(ge=0, le=65535)] = 300
    """Seconds before the end of its time (Slurm may take up to 60 more) at which the run is told to save a checkpoint
    and to end. It must leave time for one step and one save. 0: it is not told."""
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    """CPU cores on each node. Default: 4 a GPU; on a CPU, one a process."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Any other option of sbatch, as `{mem: 0, exclusive: true, mail-type: END}`."""


class NcclSpec(Section):
    """What NCCL is told, in trainer and server: the variable is named with each key."""

    interface: Annotated[str, Field(min_length=1)] | None = None
    """Network interfaces: beginnings of names, as `eth,ib`; `=eth0` is that one alone, `^docker` all but those.
    NCCL_SOCKET_IFNAME, and GLOO_SOCKET_IFNAME with the whole names."""
    ib_hca: Annotated[str, Field(min_length=1)] | None = None
    """InfiniBand or RoCE adapters, in the same way, with a port or without: `=mlx5_0:1,mlx5_1:1`. NCCL_IB_HCA."""
    gdr_level: Literal["LOC", "PIX", "PXB", "PHB", "SYS", 0, 1, 2, 3, 4, 5] | None = None
    """How far a GPU and a network adapter may be apart for GPUDirect RDMA: LOC (never), PIX, PXB, PHB, SYS (always).
    NCCL_NET_GDR_LEVEL."""
    debug: Literal["VERSION", "WARN", "INFO", "TRACE"] | None = None
    """How much NCCL says in the logs. With INFO, the run ends with a line on the transports in use. NCCL_DEBUG."""


class LaunchSpec(Section):
    """How the trainer's processes are started."""

    accelerate: str | None = None
    """A file of accelerate_configs/ by name (single, ddp, zero1, zero2, zero3, zero3_offload, fsdp2, fsdp2_offload,
    fsdp2_qlora, hsdp), or a path. Default: single or ddp."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. `auto` means GPUs, and their absence is an error."""
    gpus: Gpus | None = None
    """GPUs of the trainer on each node. Default: every visible GPU that rollouts do not take."""
    processes: Annotated[int, Field(ge=1)] | None = None
    """Processes on a CPU. Default: 1."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines that train together."""
    rendezvous_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that the nodes of a run wait for each other before the start."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables for trainer and server. Secrets as `${oc.env:NAME}`: they are never written out."""
    nccl: NcclSpec = Field(default_factory=NcclSpec)
    """Settings of NCCL."""
    slurm: SlurmSpec = Field(default_factory=SlurmSpec)
    """The job that `--launcher slurm` submits."""


Action = Literal["off", "warn", "stop"]
Patience = Annotated[int, Field(ge=1)]


class Guard(Section):
    """Base of every guard."""

    action: Action
    """`off`; `warn`: say it and go on; `stop`: end the run before the next save."""


class NonFiniteGuard(Guard):
    """Loss or gradient is NaN or infinite."""

    action: Action = "stop"
    """`off`, `warn` or `stop`."""
    patience: Patience = 1
    """Fires at this many steps in a row. In fp16 a gradient is given at least 20: loss scaling skips such steps."""


class RewardVarianceGuard(Guard):
    """The completions of a group all have the same reward: there is nothing to learn from. Where the reward is as high
    as it ever was when they differed, the task is solved, and this only warns."""

    action: Action = "stop"
    """`off`, `warn` or `stop`."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Bad is a logged step where more than this share of the groups has no variance."""
    patience: Patience = 20
    """Fires at this many bad logged steps in a row."""
    patience_at_start: Patience = 5
    """Fires when so many logged steps, the first of the run, and 20 groups, were all bad."""


class ClippedCompletionsGuard(Guard):
    """Completions are cut off at the length limit instead of ending by themselves."""

    action: Action = "warn"
    """`off`, `warn` or `stop`."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Bad is a logged step where more than this share of the completions was cut off."""
    patience: Patience = 5
    """Fires at this many bad logged steps in a row."""


class EntropyGuard(Guard):
    """The policy's entropy collapses or blows up, measured by what it was at first."""

    action: Action = "warn"
    """`off`, `warn` or `stop`."""
    above: Annotated[float, Field(gt=1)] = 3.0
    """Bad is a logged step with more than this many times the first entropy."""
    below: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Bad is a logged step with less than this part of the first entropy."""
    baseline: Patience = 20
    """The first entropy is the median of this many logged steps."""
    patience: Patience = 3
    """Fires at this many bad logged steps in a row."""


class KLGuard(Guard):
    """The policy leaves its reference model, although it is penalised for that (`beta` or `kl_coef` above 0)."""

    action: Action = "warn"
    """`off`, `warn` or `stop`."""
    threshold: Annotated[float, Field(gt=0)] = 1.0
    """Bad is a logged step with more than this many nats a token. Where the trainer logs the KL divergence of whole
    completions, it is divided by the longest that a completion may be."""
    patience: Patience = 3
    """Fires at this many bad logged steps in a row."""


class AdapterMovesGuard(Guard):
    """What is trained does not change, although learning rate and gradient are above 0."""

    action: Action = "stop"
    """`off`, `warn` or `stop`."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fires unless more than this share of the trainable tensors (of a sample of 64) has changed."""
    patience: Patience = 3
    """Steps with a learning rate and a gradient above 0 that are waited for."""


class StaleWeightsGuard(Guard):
    """vLLM generates with older weights than the trainer's: the two differ on the completions' log-probabilities."""

    action: Action = "warn"
    """`off`, `warn` or `stop`."""
    threshold: Annotated[float, Field(gt=0)] = 0.1
    """Bad is a logged step with a mean difference above this and above 5 times that of the first logged step, of which
    no more than this counts: 5 times this is always bad."""
    patience: Patience = 3
    """Fires at this many bad logged steps in a row."""


class ResumedLossGuard(Guard):
    """The first loss after `--resume`, for online methods the first reward, is worse than the last one before the
    checkpoint, and by more than chance explains."""

    action: Action = "warn"
    """`off`, `warn` or `stop`."""
    threshold: Annotated[float, Field(gt=0)] = 0.2
    """Bad is a change for the worse by more than this part of the last loss, and by more than twice the largest change
    between the last 20 logged steps."""


NO_PROGRESS_SECONDS = 600.0
"""Seconds without a finished step that are always allowed, where a recipe says nothing."""


class GuardsSpec(Section):
    """What ends a run that is lost, or warns of it. A guard is `off`, `warn` or `stop`, or a mapping of its fields."""

    no_progress_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds without a finished step that end the run. Default: max(600, 5 x the median step); smoke: 60."""
    non_finite: Action | NonFiniteGuard = "stop"
    """NaN or infinity in loss or gradient. Default: `{action: stop, patience: 1}`."""
    reward_variance: Action | RewardVarianceGuard = "stop"
    """Groups whose completions all have the same reward (online methods with rewards). Default: `{action: stop,
    threshold: 0.9, patience: 20, patience_at_start: 5}`."""
    clipped_completions: Action | ClippedCompletionsGuard = "warn"
    """Completions cut off at the length limit (online methods). Default: `{action: warn, threshold: 0.8,
    patience: 5}`."""
    entropy: Action | EntropyGuard = "warn"
    """Collapse or blow-up of the policy's entropy (online methods). Default: `{action: warn, above: 3, below: 0.1,
    baseline: 20, patience: 3}`."""
    kl: Action | KLGuard = "warn"
    """Blow-up of the KL divergence from the reference model (online methods that penalise it). Default: `{action: warn,
    threshold: 1, patience: 3}`."""
    adapter_moves: Action | AdapterMovesGuard = "stop"
    """Trained weights, an adapter's or the model's, that do not change. Default: `{action: stop, threshold: 0,
    patience: 3}`."""
    stale_weights: Action | StaleWeightsGuard = "warn"
    """Rollouts of vLLM from weights that are not the trainer's. Default: `{action: warn, threshold: 0.1,
    patience: 3}`."""
    resumed_loss: Action | ResumedLossGuard = "warn"
    """The first loss, or reward, after `--resume` against the last one before. Default: `{action: warn,
    threshold: 0.2}`."""

    def guard(self, name: str) -> Any:
        """The guard of that name with all its fields, also where the recipe only says what it does."""
        value = getattr(self, name)
        section = next(each for each in get_args(GuardsSpec.model_fields[name].annotation) if isinstance(each, type))
        return section(action=value) if isinstance(value, str) else value


class AfterSpec(Section):
    """What is done when training has succeeded."""

    merge: bool = False
    """Merge the trained adapter into its base: the model to serve is then in `<output_dir>/merged`."""


class CallbackSpec(Section):
    """A transformers TrainerCallback of your own."""

    use: str
    """`file.py:Class` or `package.module:Class`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of its constructor."""


class Recipe(Section):
    """One training run."""

    name: str
    """Name of the run. Default: the recipe's file name."""
    method: str
    """Training method; `ptcli methods` lists them."""
    seed: int = 42
    """Seed of everything random."""
    output_dir: str
    """Run directory, relative to the working directory. Default: `runs/<name>`."""
    model: ModelSpec
    """The model to train."""
    ref_model: ModelSpec | None = None
    """Reference model. Default: the model before training."""
    reward_model: ModelSpec | None = None
    """Reward model of ppo, xpo and nash_md."""
    value_model: ModelSpec | None = None
    """Value model of ppo."""
    teacher: ModelSpec | None = None
    """Teacher of gkd, minillm and distillation."""
    data: DataSpec
    """The rows to train and evaluate on."""
    rewards: list[RewardSpec] = Field(default_factory=list)
    """Rewards of grpo, rloo, online_dpo and, if wanted, minillm."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Any field of the method's TRL config."""
    peft: dict[str, Any] | None = None
    """Train an adapter: `type` (lora by default) and any field of its PEFT config."""
    rollouts: RolloutsSpec = Field(default_factory=RolloutsSpec)
    """Where the completions of an online method come from."""
    launch: LaunchSpec = Field(default_factory=LaunchSpec)
    """How the trainer's processes are started."""
    guards: GuardsSpec = Field(default_factory=GuardsSpec)
    """What ends a run that is lost, or warns of it."""
    callbacks: list[CallbackSpec] = Field(default_factory=list)
    """TrainerCallbacks of your own."""
    after: AfterSpec = Field(default_factory=AfterSpec)
    """What is done when training has succeeded."""

    @property
    def trains_adapter(self) -> bool:
        """True when only an adapter is trained, a new one or that of `model.path`; the model's weights stay."""
        return self.peft is not None or self.model.adapter == "continue"
