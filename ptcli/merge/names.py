"""Names of modules, as adapters have them, and names of tensors in a base's files, which are older in some families.

transformers renames checkpoints while it loads them (its `conversion_mapping`, 5.17.0), and PEFT saves the names of the
loaded model. Here are the plain renames, backwards. What they do not explain is handed over to PEFT or refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_Renames = tuple[tuple[str, str], ...]

_MIXTRAL: _Renames = ((r"\.mlp\.", ".block_sparse_moe."),)
_QWEN_VL: _Renames = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))
_LLAVA: _Renames = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
)
_RENAMES: Mapping[str, _Renames] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _MIXTRAL),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN_VL),
    **dict.fromkeys(
        ("llava", "aria", "paligemma", "aya_vision", "got_ocr2", "gemma3", "internvl", "vipllava", "mistral3"), _LLAVA
    ),
    "gpt_neox": ((r"^lm_head\.", "embed_out."),),
}
"""Model type -> module name to checkpoint name."""
_PREFIX = re.compile(r"^(model|transformer|gpt_neox)\.")
"""What the names in a checkpoint of the model without its head lack (`gpt2` on the hub)."""

CONV1D = frozenset({"gpt2", "openai-gpt"})
"""Model types whose layers are transformers' Conv1D, with weights (inputs, outputs)."""
MIXED = frozenset({"imagegpt", "decision_transformer", "clvp"})
"""Model types with both Conv1D and linear layers: a square weight does not tell which it is of."""
FUSED_EXPERTS = frozenset({
    "mixtral", "minimax", "minimax_m2", "qwen2_moe", "afmoe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1",
    "ernie4_5_moe", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe", "longcat_flash", "solar_open", "mellum",
    "qwen3_moe", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_next", "hunyuan_v1_moe", "flex_olmo", "olmoe",
    "exaone_moe", "cohere2_moe",
})  # fmt: skip
"""Model types whose experts are one tensor in memory and many in files (peft and transformers' `mixtral`, `qwen2_moe`
conversions). PEFT merges experts and router with a change that is rounded first."""
_EXPERT = re.compile(r"\.experts\.\d+\.[^.]+$")
_ROUTER = re.compile(r"\.(mlp|block_sparse_moe)\.gate$")
_INPUTS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tokens_embed")
_HEADS = ("lm_head", "embed_out")
SCORE_HEADS = ("score", "classifier")
"""Modules that give scores in the place of text."""


class Names:
    """Which tensor of a base a module of an adapter means."""

    def __init__(self, base_config: Mapping[str, Any], tensors: Collection[str]):
        self.model_type = str(base_config.get("model_type", ""))
        self._tensors = tensors

    def find(self, name: str) -> str | None:
        """Checkpoint name of a parameter (`model.layers.0.mlp.up_proj.weight`); None when the base has none such."""
        return next((each for each in self._candidates(name) if each in self._tensors), None)

    def _candidates(self, name: str) -> Iterator[str]:
        yield name
        renamed = name
        for pattern, replacement in _RENAMES.get(self.model_type, ()):
            renamed = re.sub(pattern, replacement, renamed)
        yield renamed
        yield _PREFIX.sub("", name)

    def is_expert(self, module: str) -> bool:
        """One of many experts, or the router that picks them: no linear layer in transformers 5."""
        return bool(_EXPERT.search(module)) or (self.model_type in FUSED_EXPERTS and bool(_ROUTER.search(module)))

    def inputs(self) -> str | None:
        """Checkpoint name of the input embeddings' weight."""
        found = [name for name in self._tensors if is_input(name.removesuffix(".weight"))]
        return min(found, key=len) if found else None

    def head(self) -> str | None:
        """Checkpoint name of the output embeddings' weight, where the files have one."""
        found = [name for name in self._tensors if is_head(name.removesuffix(".weight"))]
        return min(found, key=len) if found else None

    def new_head(self) -> str:
        """Checkpoint name that a head gets which the files do not have yet."""
        renamed = "lm_head.weight"
        for pattern, replacement in _RENAMES.get(self.model_type, ()):
            renamed = re.sub(pattern, replacement, renamed)
        inputs = self.inputs() or ""
        return renamed if renamed.partition(".")[0] == inputs.partition(".")[0] else "lm_head.weight"


def is_input(module: str) -> bool:
    return module.rpartition(".")[2] in _INPUTS


def is_head(module: str) -> bool:
    return module.rpartition(".")[2] in _HEADS
