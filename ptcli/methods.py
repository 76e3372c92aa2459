"""The table of methods. Everything that differs between two methods stands in a row here and nowhere else.

Trainers and configs are import strings ("module:Class") of the pinned TRL, so that this module imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from ptcli.errors import Problem, RequestError

Backend = Literal["vllm", "transformers"]


class DatasetType(StrEnum):
    """TRL's dataset types (its page "Dataset formats and types")."""

    LANGUAGE_MODELING = "language modeling"
    """`text` or `messages`."""
    PROMPT_ONLY = "prompt-only"
    """`prompt`."""
    PROMPT_COMPLETION = "prompt-completion"
    """`prompt`, `completion`."""
    PREFERENCE = "preference"
    """`chosen`, `rejected`, and `prompt` or an implicit one."""
    UNPAIRED_PREFERENCE = "unpaired preference"
    """`prompt`, `completion`, `label`."""
    STEPWISE_SUPERVISION = "stepwise supervision"
    """`prompt`, `completions`, `labels`."""


class Batching(StrEnum):
    """How a trainer turns batch arguments into sequences (measured, one function each in `ptcli.plan.batch`)."""

    PLAIN = "plain"
    """per-device batch x gradient accumulation x world size."""
    GENERATION = "generation"
    """GRPO's: groups of `num_generations` in a generation batch that is sliced into steps."""
    PAIRS = "pairs"
    """Two completions a prompt, no divisibility rule (OnlineDPO and its children)."""
    PPO = "ppo"
    """Mini-batches of a rollout batch."""


Section = Literal["rewards", "reward_model", "value_model", "teacher", "ref_model"]
Prompts = Literal["text", "tokens"]
Evaluates = Literal["nothing", "one set", "named sets"]
Reference = Literal["none", "always", "with beta"]
ReadsOutputLayer = Literal["no", "always", "chunked", "liger"]
"""`chunked`: in the chunked loss, which is the default, and with Liger kernels."""
Splitter = Literal["fsdp", "zero3"]
Head = Literal["causal_lm", "sequence_classification", "token_classification"]
ImplicitPrompt = Literal["first row decides", "row by row", "kept"]
"""Where the prompt of preference pairs without one is cut off: from every row when the first has no `prompt`; from each
row by itself, also where a string `prompt` stands beside chats; nowhere, the answers are read with it."""
EmptyPrompt = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class DataTraits:
    """What a trainer reads of a row besides the columns of its dataset type, and what it makes of it (TRL 1.12.0)."""

    text: bool = True
    """False where rows must be chats."""
    chats: bool = True
    """False where no chat template is applied."""
    token_columns: tuple[tuple[str, ...], ...] = ()
    """Column sets that are taken as token ids already, in order of precedence."""
    text_field: bool = False
    """True where `dataset_text_field` names the column of text."""
    sharegpt: bool = False
    """True where `conversations` with from/value becomes `messages`; role values stay."""
    tools: bool = False
    """True where a row's `tools` are rendered."""
    template_kwargs: bool = False
    """True where a row's `chat_template_kwargs` reach the template."""
    implicit_prompt: ImplicitPrompt = "first row decides"
    checks_last_role: bool = False
    """True where rendering fails on a prompt that ends with neither user, tool nor assistant."""
    strict_labels: bool = False
    """True where only JSON's true and false count as labels; elsewhere 0 and 1 do too."""
    shuffles: bool = True
    """False where rows are trained in the order of the file, unless `train_sampling_strategy` says otherwise."""
    kl_batches: bool = False
    """True where each completion is also scored under its neighbour's prompt, within a batch."""
    margin: bool = False
    """True where a column `margin` enters the loss."""
    last_turn_only: bool = False
    """True where only the last message is trained, and everything before it is the prompt."""
    empty_prompt: EmptyPrompt = "warning"
    """What a row without a prompt is."""
    withheld: tuple[str, ...] = ("prompt", "completion", "completion_ids")
    """Columns that are not handed to reward functions, where all others are."""


@dataclass(frozen=True)
class Method:
    """One way to post-train a model."""

    name: str
    title: str
    """The field's name for it, in a few words."""
    trainer: str
    """Import string of the trainer."""
    config: str
    """Import string of its config dataclass."""
    datasets: tuple[DatasetType, ...]
    """Accepted dataset types, the usual one first."""
    smoke_data: str
    """Shipped data set that `--smoke` puts in the place of hub data."""
    online: bool = False
    """True when the trainer generates completions while it trains."""
    batching: Batching = Batching.PLAIN
    smallest_group: int = 2
    """Fewest completions of a prompt, where `batching` knows groups: most methods compare them."""
    needs: tuple[Section, ...] = ()
    """Sections that the recipe must have."""
    takes: tuple[Section, ...] = ()
    """Sections that it may have besides."""
    backends: tuple[Backend, ...] = ()
    """Where completions can come from; empty when the method is not online or always generates by itself."""
    reward_arguments: tuple[str, ...] = ()
    """What the trainer passes to every reward function by keyword, besides the columns of the data."""
    awaits_rewards: bool = False
    """True when the trainer runs async reward functions itself, all those of a batch at once."""
    stand_ins: Mapping[Section, Section] = field(default_factory=lambda: MappingProxyType({}))
    """Section -> the section whose model is loaded in its place too, where the recipe leaves the first one out."""
    same_vocabulary: tuple[Section, ...] = ()
    """Sections whose model reads or scores the policy's tokens as they are, and so must share its vocabulary."""
    prompts: Prompts = "text"
    """How the trainer takes prompts: it tokenises them itself, or wants `input_ids` and no other column."""
    stop_arguments: tuple[str, ...] = ()
    """Trainer arguments that say where a completion ends, of which the recipe may give one. Where it gives none, the
    first is set to `eos`: without, TRL's trainer scores and trains what the policy babbles after its answer."""
    wants_eval: bool = False
    """True when the trainer reads evaluation rows whether it evaluates or not; where a recipe has none, some training
    rows are held out."""
    evaluates: Evaluates = "named sets"
    """What the trainer takes as evaluation rows: several sets under names, or one; or it fails at its first evaluation
    whatever they are."""
    head: Head = "causal_lm"
    reference: Reference = "none"
    """Whether the policy is compared with a reference: never, always, or where the trainer's `beta` is not 0."""
    switches_adapter_off: bool = True
    """True when the trainer's reference for a new adapter is the policy with it off. Else ptcli hands it a model."""
    keeps_adapter: bool = True
    """True when the trainer's reference for an adapter that is trained on is a copy of it. Else ptcli hands it one."""
    copies_reference: bool = False
    """True when the trainer's reference, for want of another, is a copy of the policy in memory, which ZeRO-3 has in
    parts. Then ptcli hands it one."""
    reads_output_layer: ReadsOutputLayer = "no"
    """When the loss reads the output layer's weight itself, so that an adapter on it would not be trained."""
    virtual_tokens: bool = False
    """True when the trainer knows of the tokens that prompt tuning puts before a row's own."""
    fails_under: tuple[Splitter, ...] = ()
    """What splits weights in a way that the trainer fails with."""
    resumes: bool = True
    """False when the trainer cannot go on from a checkpoint."""
    precomputes_whole: bool = False
    """True when the trainer computes the reference's log-probabilities ahead only with weights that are not split."""
    arguments: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Trainer argument -> recipe section, where the two have different names."""
    encoder: str = ""
    """Import string of what turns rows into tokens as the trainer does, for the data checks."""
    data: DataTraits = field(default_factory=DataTraits)
    last_release: str = ""
    """The last TRL release that ships the trainer, where a later one does not."""

    @property
    def sections(self) -> tuple[Section, ...]:
        """Every method-specific section that the recipe may have."""
        return self.needs + self.takes


_D = DatasetType
_ROLLOUTS: tuple[Backend, ...] = ("vllm", "transformers")
_REWARDED = ("prompts", "completions", "completion_ids", "trainer_state")
_LOGGED = (*_REWARDED, "log_extra", "log_metric")
_PROMPTS = DataTraits(empty_prompt="error")
_CUT_ROW_BY_ROW = DataTraits(template_kwargs=True, implicit_prompt="row by row", checks_last_role=True)

_ROWS = (
    Method(
        "sft", "supervised fine-tuning", "trl:SFTTrainer", "trl:SFTConfig",
        (_D.LANGUAGE_MODELING, _D.PROMPT_COMPLETION), "builtin:arithmetic-messages",
        reads_output_layer="chunked", virtual_tokens=True,
        encoder="ptcli.data.tokens.supervised:SFT",
        data=DataTraits(
            token_columns=(("input_ids",),), text_field=True, sharegpt=True, tools=True, template_kwargs=True,
        ),
    ),
    Method(
        "dpo", "direct preference optimisation", "trl:DPOTrainer", "trl:DPOConfig",
        (_D.PREFERENCE,), "builtin:arithmetic-preference", takes=("ref_model",),
        reference="always", reads_output_layer="liger",
        encoder="ptcli.data.tokens.preference:DPO",
        data=DataTraits(tools=True, template_kwargs=True),
    ),
    Method(
        "kto", "Kahneman-Tversky optimisation", "trl:KTOTrainer", "trl:KTOConfig",
        (_D.UNPAIRED_PREFERENCE, _D.PREFERENCE), "builtin:arithmetic-unpaired", takes=("ref_model",),
        reference="always", reads_output_layer="liger",
        encoder="ptcli.data.tokens.preference:KTO",
        data=DataTraits(tools=True, template_kwargs=True, shuffles=False, kl_batches=True),
    ),
    Method(
        "cpo", "contrastive preference optimisation", "trl.experimental.cpo:CPOTrainer",
        "trl.experimental.cpo:CPOConfig", (_D.PREFERENCE,), "builtin:arithmetic-preference", evaluates="one set",
        encoder="ptcli.data.tokens.handmade:CPO",
        data=_CUT_ROW_BY_ROW,
    ),
    Method(
        "orpo", "odds-ratio preference optimisation", "trl.experimental.orpo:ORPOTrainer",
        "trl.experimental.orpo:ORPOConfig", (_D.PREFERENCE,), "builtin:arithmetic-preference", evaluates="one set",
        encoder="ptcli.data.tokens.handmade:CPO",
        data=_CUT_ROW_BY_ROW,
    ),
    Method(
        "bco", "binary classifier optimisation", "trl.experimental.bco:BCOTrainer", "trl.experimental.bco:BCOConfig",
        (_D.UNPAIRED_PREFERENCE, _D.PREFERENCE), "builtin:arithmetic-unpaired", takes=("ref_model",),
        evaluates="one set", last_release="1.13.0",
        reference="always", keeps_adapter=False, precomputes_whole=True, copies_reference=True,
        encoder="ptcli.data.tokens.handmade:BCO",
        data=DataTraits(
            template_kwargs=True, implicit_prompt="row by row", checks_last_role=True, strict_labels=True,
            empty_prompt="error",
        ),
    ),
    Method(
        "grpo", "group relative policy optimisation", "trl:GRPOTrainer", "trl:GRPOConfig",
        (_D.PROMPT_ONLY,), "builtin:arithmetic", online=True, batching=Batching.GENERATION,
        needs=("rewards",), backends=_ROLLOUTS, reward_arguments=_LOGGED, awaits_rewards=True,
        reference="with beta", reads_output_layer="liger", virtual_tokens=True,
        encoder="ptcli.data.tokens.prompts:Rollout",
        data=_PROMPTS,
    ),
    Method(
        "rloo", "REINFORCE leave-one-out", "trl:RLOOTrainer", "trl:RLOOConfig",
        (_D.PROMPT_ONLY,), "builtin:arithmetic", online=True, batching=Batching.GENERATION,
        needs=("rewards",), backends=_ROLLOUTS, reward_arguments=_LOGGED, awaits_rewards=True,
        reference="with beta",
        encoder="ptcli.data.tokens.prompts:Rollout",
        data=_PROMPTS,
    ),
    Method(
        "online_dpo", "online DPO", "trl.experimental.online_dpo:OnlineDPOTrainer",
        "trl.experimental.online_dpo:OnlineDPOConfig", (_D.PROMPT_ONLY,), "builtin:arithmetic", online=True,
        batching=Batching.PAIRS, evaluates="nothing", needs=("rewards",), takes=("ref_model",), backends=_ROLLOUTS,
        reward_arguments=_REWARDED,
        reference="always", copies_reference=True,
        encoder="ptcli.data.tokens.prompts:OnlineDPO",
        data=DataTraits(empty_prompt="error", withheld=("prompt",)),
    ),
    Method(
        "xpo", "exploratory preference optimisation", "trl.experimental.xpo:XPOTrainer",
        "trl.experimental.xpo:XPOConfig", (_D.PROMPT_ONLY,), "builtin:arithmetic", online=True,
        batching=Batching.PAIRS, evaluates="nothing", needs=("reward_model",), takes=("ref_model",),
        backends=("transformers",),
        same_vocabulary=("reward_model",), arguments=MappingProxyType({"reward_funcs": "reward_model"}),
        last_release="1.13.0",
        reference="always", switches_adapter_off=False, copies_reference=True,
        encoder="ptcli.data.tokens.prompts:XPO",
        data=_PROMPTS,
    ),
    Method(
        "nash_md", "Nash mirror descent", "trl.experimental.nash_md:NashMDTrainer",
        "trl.experimental.nash_md:NashMDConfig", (_D.PROMPT_ONLY,), "builtin:arithmetic", online=True,
        batching=Batching.PAIRS, evaluates="nothing", needs=("reward_model",), takes=("ref_model",),
        backends=("transformers",),
        same_vocabulary=("reward_model",), arguments=MappingProxyType({"reward_funcs": "reward_model"}),
        last_release="1.13.0",
        reference="always", switches_adapter_off=False, copies_reference=True,
        fails_under=("zero3", "fsdp"),
        encoder="ptcli.data.tokens.prompts:XPO",
        data=_PROMPTS,
    ),
    Method(
        "ppo", "proximal policy optimisation", "trl.experimental.ppo:PPOTrainer", "trl.experimental.ppo:PPOConfig",
        (_D.PROMPT_ONLY,), "builtin:arithmetic", online=True, batching=Batching.PPO,
        needs=("reward_model",), takes=("value_model", "ref_model"),
        stand_ins=MappingProxyType({"value_model": "reward_model"}), same_vocabulary=("reward_model", "value_model"),
        prompts="tokens", stop_arguments=("stop_token", "stop_token_id"), wants_eval=True, evaluates="one set",
        last_release="1.12.0", reference="always", keeps_adapter=False, copies_reference=True, fails_under=("fsdp",),
        resumes=False,
        encoder="ptcli.data.tokens.prompts:PPO",
        data=DataTraits(token_columns=(("input_ids",),), empty_prompt="error"),
    ),
    Method(
        "reward", "reward model", "trl:RewardTrainer", "trl:RewardConfig",
        (_D.PREFERENCE,), "builtin:arithmetic-preference", head="sequence_classification",
        virtual_tokens=True,
        encoder="ptcli.data.tokens.preference:Reward",
        data=DataTraits(
            token_columns=(("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")), tools=True,
            template_kwargs=True, implicit_prompt="kept", margin=True,
        ),
    ),
    Method(
        "prm", "process reward model", "trl.experimental.prm:PRMTrainer", "trl.experimental.prm:PRMConfig",
        (_D.STEPWISE_SUPERVISION,), "builtin:arithmetic-steps", head="token_classification", evaluates="one set",
        last_release="1.13.0",
        encoder="ptcli.data.tokens.steps:PRM",
        data=DataTraits(chats=False, token_columns=(("input_ids", "labels"),), empty_prompt="ok"),
    ),
    Method(
        "gkd", "generalised knowledge distillation", "trl.experimental.gkd:GKDTrainer",
        "trl.experimental.gkd:GKDConfig", (_D.LANGUAGE_MODELING,), "builtin:arithmetic-messages", online=True,
        needs=("teacher",), same_vocabulary=("teacher",), arguments=MappingProxyType({"teacher_model": "teacher"}),
        reads_output_layer="chunked",
        encoder="ptcli.data.tokens.supervised:GKD",
        data=DataTraits(text=False, last_turn_only=True, empty_prompt="ok"),
    ),
    Method(
        "minillm", "reverse-KL distillation", "trl.experimental.minillm:MiniLLMTrainer",
        "trl.experimental.minillm:MiniLLMConfig", (_D.PROMPT_ONLY,), "builtin:arithmetic", online=True,
        batching=Batching.GENERATION, smallest_group=1, needs=("teacher",), takes=("rewards",), backends=_ROLLOUTS,
        reward_arguments=_LOGGED, awaits_rewards=True, same_vocabulary=("teacher",),
        arguments=MappingProxyType({"teacher_model": "teacher"}), last_release="1.14.2",
        reference="with beta",
        encoder="ptcli.data.tokens.prompts:Rollout",
        data=_PROMPTS,
    ),
    Method(
        "distillation", "on-policy distillation", "trl:DistillationTrainer", "trl:DistillationConfig",
        (_D.PROMPT_ONLY,), "builtin:arithmetic", online=True,
        needs=("teacher",), backends=_ROLLOUTS, same_vocabulary=("teacher",),
        arguments=MappingProxyType({"teacher_model": "teacher"}),
        reads_output_layer="always",
        encoder="ptcli.data.tokens.prompts:Rollout",
        data=_PROMPTS,
    ),
)  # fmt: skip

METHODS: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})
"""Every method by the name that a recipe's `method` uses."""

NOT_COVERED: Mapping[str, str] = MappingProxyType(
    {
        "a2po": "trl.experimental.a2po:A2POTrainer",
        "async_distillation": "trl.experimental.async_distillation:AsyncDistillationTrainer",
        "async_grpo": "trl.experimental.async_grpo:AsyncGRPOTrainer",
        "bema_for_ref_model": "trl.experimental.bema_for_ref_model:DPOTrainer",
        "gmpo": "trl.experimental.gmpo:GMPOTrainer",
        "gold": "trl.experimental.gold:GOLDTrainer",
        "grpo_with_replay_buffer": "trl.experimental.grpo_with_replay_buffer:GRPOWithReplayBufferTrainer",
        "gspo_token": "trl.experimental.gspo_token:GRPOTrainer",
        "iw_opd": "trl.experimental.iw_opd:IWOPDTrainer",
        "sdft": "trl.experimental.sdft:SDFTTrainer",
        "sdpo": "trl.experimental.sdpo:SDPOTrainer",
        "server_distillation": "trl.experimental.server_distillation:ServerDistillationTrainer",
        "ssd": "trl.experimental.ssd:SSDTrainer",
        "tpo": "trl.experimental.tpo:TPOTrainer",
    }
)
"""Trainers that the pinned TRL ships besides, by the name of their package; no recipe can ask for them yet."""


def find_method(name: str) -> Method:
    """The row of a method.

    Raises:
        RequestError: when there is none of that name, with the nearest one.
    """
    if name in METHODS:
        return METHODS[name]
    if name in NOT_COVERED:
        raise RequestError(Problem(f"method {name!r} is not covered yet", fix=f"methods: {', '.join(METHODS)}"))
    nearest = difflib.get_close_matches(name, METHODS, 1, 0.7)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"methods: {', '.join(METHODS)}"
    raise RequestError(Problem(f"unknown method {name!r}", fix=hint))
