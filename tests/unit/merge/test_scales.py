"""alpha / r and its variants, with each module's own r and alpha."""

from __future__ import annotations

import math

import pytest

from ptcli.merge.scales import rank_of, scale_of

MODULE = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 8, "lora_alpha": 16}, 2.0),
        ({"r": 8, "lora_alpha": 16, "use_rslora": True}, 16 / math.sqrt(8)),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"up_proj": 4}}, 4.0),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"up_proj": 4}}, 0.5),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"proj": 4}}, 2.0),  # the end of a name, from a dot on
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"mlp.up_proj": 8, "up_proj": 4}}, 1.0),  # the first wins
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {r"layers\.[0-9]\.mlp.*": 4}}, 0.5),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": None, "alpha_pattern": {}}, 2.0),
        ({}, 1.0),
    ],
)
def test_scale(config: dict, scale: float) -> None:
    assert scale_of(config, MODULE, rank_of(config, MODULE)) == scale
