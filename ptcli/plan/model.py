"""What planning works on and returns: `Machine` and `Plan`, frozen and printable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ptcli.recipe.model import Recipe


@dataclass(frozen=True)
class GPU:
    """One visible GPU."""

    token: str
    """What goes into CUDA_VISIBLE_DEVICES for it: an index or a UUID, exactly as the parent's environment has it."""
    name: str = "GPU"
    memory: int | None = None
    """Bytes of device memory; None when unknown."""
    uuid: str | None = None


@dataclass(frozen=True)
class Place:
    """Which of several nodes this is, and where they meet."""

    rank: int
    """Counted from 0; the first is the one that the others look for."""
    host: str
    """Address or name of node 0, as all of them can reach it."""
    port: int
    """First for the check that all is well, then for the trainer's processes to find each other."""

    @property
    def address(self) -> str:
        """`10.0.0.1:29500`, `[fd00::1]:29500`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Machine:
    """What planning needs to know of the machine, read once."""

    gpus: tuple[GPU, ...]
    """Visible GPUs of one node, in the order of CUDA_VISIBLE_DEVICES."""
    cpus: int = 1
    memory: int | None = None
    """Bytes of main memory."""
    nodes: int = 1
    free_ports: tuple[int, ...] = (8000, 51216, 29500, 29550)
    """Ports that could be bound, to be handed out in this order."""
    busy_ports: frozenset[int] = frozenset()
    """Ports that the recipe asks for and that could not be bound."""
    assumed: bool = False
    """True for `--assume-gpus`: nothing here was read."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES as the caller set it; None when it is unset."""
    device_order: str = "PCI_BUS_ID"
    """CUDA_DEVICE_ORDER that gives the index tokens their meaning."""
    threads: int | None = None
    """OMP_NUM_THREADS as the caller set it."""
    accelerate_config: str | None = None
    """The caller's default config of accelerate's, where there is one. It is not used."""
    interfaces: tuple[str, ...] | None = None
    """Names of its network interfaces; None when unknown."""
    adapters: tuple[str, ...] | None = None
    """Names of its InfiniBand and RoCE adapters; None when unknown."""
    nccl: Mapping[str, str] = field(default_factory=dict)
    """NCCL's and gloo's variables as the caller set them."""
    place: Place | None = None
    """Which node it is; None for the only one, and where a plan is only looked at."""


@dataclass(frozen=True)
class Step:
    """One group of processes on one node, started by one command."""

    name: Literal["rollouts", "trainer", "check", "doctor", "merge"]
    """`check` and `doctor` are none of a plan's steps: see `ptcli.run.child` and `ptcli.doctor.checkup`."""
    node: int
    argv: tuple[str, ...]
    """`argv[0]` is a program of the same environment as ptcli (`vllm`, `accelerate`)."""
    env: Mapping[str, str]
    """What is set on top of the caller's environment. Secrets stand as `${oc.env:NAME}`."""
    gpus: tuple[str, ...]
    """Tokens of the GPUs it sees; empty on a CPU."""


@dataclass(frozen=True)
class Server:
    """What the rollout server must turn out to be."""

    url: str
    """Base URL without a trailing slash."""
    model: str
    """The id that `/v1/models` must show (`--served-model-name`)."""
    dtype: str
    max_model_len: int | None
    """None: the model's own limit, whatever it is."""
    tensor_parallel_size: int
    data_parallel_size: int
    weight_transfer: Literal["nccl", "gloo"]
    startup_timeout: float
    """Seconds it may take to become ready."""
    external: bool = False
    """True for `rollouts.url`: checked like our own, but neither started nor ended by us."""


@dataclass(frozen=True)
class Plan:
    """Everything that a run will do, decided before anything is started."""

    method: str
    recipe: Recipe
    """The resolved recipe: what the worker reads."""
    output_dir: Path
    """Absolute."""
    steps: tuple[Step, ...]
    """Server first."""
    files: Mapping[str, str]
    """What is written before the start: path relative to `output_dir` to text."""
    batch: Mapping[str, Any]
    """Batch arithmetic: sizes in sequences, the world size, steps where they can be known."""
    memory: Mapping[str, Any]
    """What can be said of memory; empty when nothing can."""
    server: Server | None = None
    after: Step | None = None
    """What is run when training has succeeded: the merge of `after: {merge: true}`."""
    place: Place | None = None
    """Which of its nodes this is; None for the only one, and where a plan is only looked at."""
    smoke: bool = False
    no_progress_seconds: float | None = None
    """Fixed limit between two steps; None: max(600, 5 x the median step)."""
    notes: tuple[str, ...] = field(default=())
    """What a person should know: replacements made by --smoke, warnings, what is unknown."""

    @property
    def node(self) -> int:
        """The node that this is."""
        return self.place.rank if self.place else 0

    @property
    def nodes(self) -> int:
        """Machines that the steps run on."""
        return 1 + max((step.node for step in self.steps), default=0)
