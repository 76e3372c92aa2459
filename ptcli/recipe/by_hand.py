"""What the annotations of the pinned libraries do not say: fields that take a few words, or a number or a list of them.

Part of `ptcli.recipe.generate_catalogue`; a test compares it with the trainers' own source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

_NUMBER_OR_NUMBERS: Schema = {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "number"}]}
_DTYPES = ["bfloat16", "float16", "float32", "float64"]


def choices_of(*values: Any) -> Schema:
    """The schema of a field that takes one of `values`."""
    return {"enum": list(values)}


_LOSSES: Mapping[str, tuple[str, ...]] = {
    "trl:KTOConfig": ("kto", "apo_zero_unpaired"),
    "trl.experimental.cpo:CPOConfig": ("sigmoid", "hinge", "ipo", "simpo", "alphapo"),
    "trl.experimental.online_dpo:OnlineDPOConfig": ("sigmoid", "ipo"),
    "trl.experimental.xpo:XPOConfig": ("sigmoid", "ipo"),
    "trl.experimental.nash_md:NashMDConfig": ("sigmoid", "ipo"),
}
_GRPO_LIKE = ("trl:GRPOConfig", "trl.experimental.minillm:MiniLLMConfig")
_SFT_LIKE = ("trl:SFTConfig", "trl.experimental.gkd:GKDConfig")
_GRPO_LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
_DPO_LOSSES = choices_of(
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip

BY_HAND: dict[tuple[str, str], Schema] = {
    # Read in TRL's trainers: the strings that the code compares with, and what __post_init__ converts.
    **{(name, "loss_type"): choices_of(*losses) for name, losses in _LOSSES.items()},
    **{(name, "loss_type"): choices_of(*_GRPO_LOSSES) for name in _GRPO_LIKE},
    **{(name, "loss_type"): choices_of("nll", "dft", "chunked_nll", None) for name in _SFT_LIKE},
    ("trl:DPOConfig", "loss_type"): {"anyOf": [{"type": "array", "items": _DPO_LOSSES}, _DPO_LOSSES]},
    ("trl:DPOConfig", "f_divergence_type"): choices_of("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    ("trl", "truncation_mode"): choices_of("keep_start", "keep_end"),
    ("trl", "packing_strategy"): choices_of("bfd", "bfd_split", "wrapped", "bfd-requeue"),
    ("trl", "scale_rewards"): choices_of("group", "batch", "none", True, False),
    ("trl", "importance_sampling_level"): choices_of("token", "sequence"),
    ("trl", "multi_objective_aggregation"): choices_of("sum_then_normalize", "normalize_then_sum"),
    ("trl", "vllm_importance_sampling_mode"): choices_of(
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ),
    ("trl", "vllm_mode"): choices_of("server", "colocate"),
    ("trl.experimental", "beta"): _NUMBER_OR_NUMBERS,
    ("trl.experimental", "alpha"): _NUMBER_OR_NUMBERS,
    ("trl.experimental", "mixture_coef"): _NUMBER_OR_NUMBERS,
    ("trl", "include_num_input_tokens_seen"): choices_of("all", "non_padding", "no", True, False),
    # `pissa_niter_16` and the like: the annotation lists the pattern itself.
    **{(name, "init_lora_weights"): {"anyOf": [
        {"enum": ["gaussian", "eva", "olora", "pissa", "corda", "loftq", "orthogonal", "mica", "lora_ga"]},
        {"type": "boolean"}, {"type": "string", "pattern": "^pissa_niter_[0-9]+$"}]}
       for name in ("peft:LoraConfig", "peft:AdaLoraConfig")},
    ("peft:RoadConfig", "variant"): choices_of("road_1", "road_2", "road_4"),
    ("transformers:BitsAndBytesConfig", "bnb_4bit_compute_dtype"): choices_of(*_DTYPES, None),
    ("transformers:BitsAndBytesConfig", "bnb_4bit_quant_type"): choices_of("fp4", "nf4"),
    ("transformers:BitsAndBytesConfig", "bnb_4bit_quant_storage"):
        choices_of("float16", "float32", "int8", "uint8", "float64", "bfloat16", None),
    ("transformers:BitsAndBytesConfig", "llm_int8_skip_modules"):
        {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
}  # fmt: skip


def by_hand(class_name: str, field: str, schema: Schema) -> Schema:
    """The hand-written schema for a field: of the class, else of a module it is in, else the one given.

    A number or a list of them takes only the place of a list, so that `beta: float` stays a number.
    """
    exact = BY_HAND.get((class_name, field))
    if exact is not None:
        return exact
    parts = class_name.partition(":")[0].split(".")
    for length in range(len(parts), 0, -1):
        found = BY_HAND.get((".".join(parts[:length]), field))
        if found is not None and (found is not _NUMBER_OR_NUMBERS or schema.get("type") == "array"):
            return found
    return schema
