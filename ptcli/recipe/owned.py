"""Keys of the libraries that a recipe says elsewhere, or cannot say, and keys that were renamed.

Only words for error messages: what a library accepts stands in the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Owner:
    """Where a library's key is said in a recipe."""

    place: str = ""
    """The recipe key that owns it; empty when a recipe cannot say it."""
    otherwise: str = ""
    """The key that owns it in a method that does not take `place`'s section."""
    fix: str = ""
    """What to do; empty: set `place`."""
    reason: str = ""
    """Why a recipe cannot say it."""


def _places(**places: str) -> dict[str, Owner]:
    return {key: Owner(place) for key, place in places.items()}


def _refused(reason: str, *keys: str, fix: str = "leave it out") -> dict[str, Owner]:
    return {key: Owner(reason=reason, fix=fix) for key in keys}


_ACCELERATE = Owner("launch.accelerate", fix="name a file of accelerate_configs/ or your own in `launch.accelerate`")
_CPU = Owner("launch.device", fix="write `launch: {device: cpu}`")
_MODEL = _places(
    model_init_kwargs="model.init_kwargs",
    trust_remote_code="model.trust_remote_code",
    chat_template_path="model.chat_template",
    chat_template="model.chat_template",
    eos_token="model.eos_token",
    pad_token="model.pad_token",
    model_name_or_path="model.path",
    model_revision="model.revision",
    attn_implementation="model.attn_implementation",
    dtype="model.dtype",
    torch_dtype="model.dtype",
    sft_model_path="model.path",
    ref_model_init_kwargs="ref_model.init_kwargs",
    teacher_model_init_kwargs="teacher.init_kwargs",
    teacher_model_name_or_path="teacher.path",
    teacher_model_revision="teacher.revision",
    load_in_4bit="model.quantization.load_in_4bit",
    load_in_8bit="model.quantization.load_in_8bit",
) | {"reward_model_path": Owner("reward_model.path", otherwise="rewards")}

_TRAINING = (
    _MODEL
    | _places(
        output_dir="output_dir",
        seed="seed",
        vllm_mode="rollouts.mode",
        vllm_server_base_url="rollouts.url",
        vllm_server_host="rollouts.host",
        vllm_server_port="rollouts.port",
        vllm_dtype="rollouts.dtype",
        vllm_enable_prefix_caching="rollouts.engine.enable_prefix_caching",
        num_processes="launch.gpus",
        vllm_server_timeout="rollouts.startup_timeout",
        vllm_group_port="rollouts.group_port",
        vllm_gpu_memory_utilization="rollouts.gpu_memory_utilization",
        vllm_tensor_parallel_size="rollouts.tensor_parallel_size",
        vllm_max_model_length="rollouts.max_model_len",
        vllm_max_model_len="rollouts.max_model_len",
        vllm_model_impl="rollouts.engine.model_impl",
        reward_weights="rewards",
        reward_funcs="rewards",
        dataset_name="data.train",
        dataset_path="data.train",
    )
    | {
        "use_vllm": Owner("rollouts.backend", fix="write `rollouts: {backend: vllm}`, or `{backend: transformers}`"),
        "reward_weights": Owner("rewards", fix="give each entry of `rewards` its own `weight`"),
        "use_cpu": _CPU,
        "no_cuda": _CPU,
        "use_mps_device": Owner(reason="is gone from transformers; ptcli trains on CUDA or a CPU", fix="leave it out"),
        "deepspeed": _ACCELERATE,
        "fsdp": _ACCELERATE,
        "fsdp_config": _ACCELERATE,
        "fsdp_min_num_params": _ACCELERATE,
        "fsdp_transformer_layer_cls_to_wrap": _ACCELERATE,
        "sharded_ddp": _ACCELERATE,
        "vllm_device": Owner("rollouts.gpus", fix="write `rollouts: {gpus: 1}` for a server, or `{mode: colocate}`"),
        "parallelism_config": _ACCELERATE,
        "tokenizer": Owner("model", fix="the tokenizer comes with `model.path`; see also `model.chat_template`"),
        "processing_class": Owner("model", fix="the tokenizer comes with `model.path`"),
        "peft_config": Owner("peft"),
        "use_peft": Owner("peft", fix="write a `peft:` section, as `peft: {r: 16}`"),
        "callbacks": Owner("callbacks"),
        "resume_from_checkpoint": Owner("--resume", fix="run `ptcli train RECIPE --resume`, or `--resume-from PATH`"),
        "overwrite_output_dir": Owner("--overwrite", fix="run `ptcli train RECIPE --overwrite`"),
    }
    | _refused("is not read by any trainer: `ptcli train` always trains", "do_train", "do_predict")
    | _refused("is set by the launcher in every process", "local_rank")
    | _refused(
        "is computed by the PPO trainer, which overwrites what is given",
        "world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size",
        "local_mini_batch_size", "mini_batch_size",
        fix="set `per_device_train_batch_size`, `gradient_accumulation_steps` and `num_mini_batches`",
    )
)  # fmt: skip

_PEFT = _places(
    peft_type="peft.type",
    base_model_name_or_path="model.path",
    revision="model.revision",
) | _refused("is set by PEFT itself", "auto_mapping", "peft_version") | _refused(
    "would freeze the adapter, and ptcli trains it", "inference_mode"
)  # fmt: skip

_MULTI_NODE = "is decided by ptcli's plan, which runs the server on one node"
_ENGINE = (
    _places(
        model="model.path",
        model_tag="model.path",
        revision="model.revision",
        trust_remote_code="model.trust_remote_code",
        seed="seed",
        host="rollouts.host",
        port="rollouts.port",
        dtype="rollouts.dtype",
        max_model_len="rollouts.max_model_len",
        gpu_memory_utilization="rollouts.gpu_memory_utilization",
        tensor_parallel_size="rollouts.tensor_parallel_size",
        data_parallel_size="rollouts.data_parallel_size",
        device_ids="rollouts.gpus",
    )
    | _refused("is set by ptcli: TRL's weight sync needs it as it is", "weight_transfer_config")
    | _refused("is set by ptcli: TRL needs the log-probabilities of what was sampled", "logprobs_mode",
               "max_logprobs")
    | _refused("is set by ptcli, which checks the server by it", "served_model_name")
    | _refused("would hide the HTTP server that TRL speaks to", "headless", "grpc", "uds", "tokens_only", "root_path")
    | _refused("would lock TRL's client out, which sends no key and no certificate", "api_key", "ssl_keyfile",
               "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh")
    | _refused(_MULTI_NODE, "nnodes", "node_rank", "master_addr", "master_port", "data_parallel_address",
               "data_parallel_rank", "data_parallel_start_rank", "data_parallel_size_local", "data_parallel_rpc_port",
               "data_parallel_hybrid_lb", "data_parallel_external_lb", "data_parallel_backend",
               "data_parallel_supervisor_port", "data_parallel_multi_port_external_lb")
    | _refused("is not planned: the server's GPUs are split by tensor and data parallelism",
               "pipeline_parallel_size", fix="use `rollouts.tensor_parallel_size`")
)  # fmt: skip

OWNED: Mapping[str, Mapping[str, Owner]] = MappingProxyType(
    {"training": _TRAINING, "peft": _PEFT, "engine": _ENGINE, "quantization": {}}
)
"""Kind of section -> key -> its owner."""

RENAMED: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "training": {
        # renamed in TRL or transformers
        "max_seq_length": ("max_length",),
        "evaluation_strategy": ("eval_strategy",),
        "per_gpu_train_batch_size": ("per_device_train_batch_size",),
        "per_gpu_eval_batch_size": ("per_device_eval_batch_size",),
        "vllm_importance_sampling_cap": ("vllm_importance_sampling_clip_max",),
        "vllm_guided_decoding_regex": ("vllm_structured_outputs_regex",),
        "warmup_ratio": ("warmup_steps",),
        "include_inputs_for_metrics": ("include_for_metrics",),
        "push_to_hub_model_id": ("hub_model_id",),
        "push_to_hub_token": ("hub_token",),
        "group_by_length": ("train_sampling_strategy",),
        "use_liger": ("use_liger_kernel",),
        "use_liger_loss": ("use_liger_kernel",),
        "torchdynamo": ("torch_compile_backend",),
        "activation_checkpointing": ("gradient_checkpointing",),
        "activation_checkpointing_kwargs": ("gradient_checkpointing_kwargs",),
        "wandb_log_unique_prompts": ("log_unique_prompts",),
        "init_kl_coef": ("kl_coef",),
        "ppo_epochs": ("num_ppo_epochs",),
        "log_with": ("report_to",),
        "split_batches": ("accelerator_config",),
        "dispatch_batches": ("accelerator_config",),
        # one thing, different names in different methods, or in other programs
        "max_new_tokens": ("max_completion_length", "response_length"),
        "max_completion_length": ("max_new_tokens", "response_length"),
        "response_length": ("max_completion_length", "max_new_tokens"),
        "kl_coef": ("beta",),
        "beta": ("kl_coef",),
        "lr": ("learning_rate",),
        "epochs": ("num_train_epochs",),
        "num_epochs": ("num_train_epochs",),
        "lr_scheduler": ("lr_scheduler_type",),
        "scheduler": ("lr_scheduler_type",),
        "optimizer": ("optim",),
        "warmup": ("warmup_steps",),
        "per_device_batch_size": ("per_device_train_batch_size",),
        "batch_size": ("per_device_train_batch_size",),
        "micro_batch_size": ("per_device_train_batch_size",),
        "grad_clip": ("max_grad_norm",),
    },
    "peft": {
        "lora_r": ("r",),
        "rank": ("r",),
        "lora_rank": ("r",),
        "alpha": ("lora_alpha",),
        "dropout": ("lora_dropout",),
        "lora_target_modules": ("target_modules",),
        "lora_modules_to_save": ("modules_to_save",),
        "use_lora": ("type",),
    },
    "engine": {"max_model_length": ("max_model_len",), "eager": ("enforce_eager",)},
    "quantization": {
        "bnb_4bit_dtype": ("bnb_4bit_compute_dtype",),
        "bits": ("load_in_4bit",),
        "compute_dtype": ("bnb_4bit_compute_dtype",),
        "use_bnb_nested_quant": ("bnb_4bit_use_double_quant",),
        "quant_type": ("bnb_4bit_quant_type",),
    },
})  # fmt: skip
"""Kind of section -> key -> its names elsewhere. Read only for a key that the config at hand does not have."""

RENAMED_FIX: Mapping[str, str] = MappingProxyType({
    "bits": "write `load_in_4bit: true` or `load_in_8bit: true`",
    "use_lora": "write `type: lora`, or nothing: it is the default",
    "warmup_ratio": "write `warmup_steps` with a value below 1, which means a share of all steps",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "split_batches": "write `accelerator_config: {split_batches: ...}`",
    "dispatch_batches": "write `accelerator_config: {dispatch_batches: ...}`",
})  # fmt: skip
"""What to do where "write the new name" is not enough."""

_NO_PROMPT_CUT = "TRL no longer cuts prompts"
REMOVED: Mapping[str, tuple[str, str]] = MappingProxyType({
    "max_seq_length": ("this method's trainer bounds only what it generates", "see `max_completion_length`"),
    "max_prompt_length": (_NO_PROMPT_CUT, "leave it out, and leave rows with long prompts out of the data"),
    "logging_dir": ("it is taken from the environment", "write `launch: {env: {TENSORBOARD_LOGGING_DIR: ...}}`"),
    "truncation_mode": ("this method's trainer has only one way to cut", "leave it out"),
    "dataset_batch_size": ("it is gone from TRL", "leave it out"),
    "fp16_backend": ("it is gone from transformers", "leave it out: `bf16` and `fp16` are enough"),
    "half_precision_backend": ("it is gone from transformers", "leave it out: `bf16` and `fp16` are enough"),
    "include_tokens_per_second": ("it is gone from transformers", "see `include_num_input_tokens_seen`"),
    "save_safetensors": ("transformers always saves safetensors", "leave it out"),
    "jit_mode_eval": ("it is gone from transformers", "leave it out"),
    "tpu_num_cores": ("ptcli trains on CUDA or a CPU", "leave it out"),
    "ray_scope": ("it is gone from transformers", "leave it out"),
    "use_ipex": ("it is gone from transformers", "leave it out"),
    "label_pad_token_id": ("TRL always uses -100", "leave it out"),
    "reference_free": ("it is gone from TRL", "see method cpo or orpo, which have no reference"),
    "rpo_alpha": ("it is gone from TRL", "write `loss_type: [sigmoid, sft]` and `loss_weights: [1.0, ALPHA]`"),
    "force_use_ref_model": ("it is gone from TRL", "name the reference in `ref_model`"),
    "base_model_attribute_name": ("it is gone from TRL", "leave it out"),
    "use_logits_to_keep": ("TRL does so where it can", "leave it out"),
    "use_num_logits_to_keep": ("TRL does so where it can", "leave it out"),
    "judge": ("TRL's trainers take no judge", "write an async reward function that asks one, see `rewards`"),
    "adap_kl_ctrl": ("TRL's PPO has a fixed KL penalty", "set `kl_coef`"),
    "target_kl": ("TRL's PPO has a fixed KL penalty", "set `kl_coef`"),
    "horizon": ("TRL's PPO has a fixed KL penalty", "set `kl_coef`"),
    "num_of_sequences": ("it is gone from TRL", "leave it out"),
    "chars_per_token": ("it is gone from TRL", "leave it out"),
    "formatting_func": ("a recipe has no code there", "bring the rows into a format that TRL reads"),
    "past_index": ("it is gone from transformers", "leave it out"),
    "mp_parameters": ("it is gone from transformers", "leave it out"),
    "fp16_opt_level": ("it is gone from transformers", "leave it out: `bf16` and `fp16` are enough"),
    "use_legacy_prediction_loop": ("it is gone from transformers", "leave it out"),
    "tools": ("tools come with a later version of ptcli", "leave it out"),
})  # fmt: skip
"""Training keys that older versions had, with why they are gone and what to do. Read only as RENAMED is."""
