"""Every identity, in the order in which they are checked."""

from __future__ import annotations

from types import ModuleType

from ptcli.doctor.math import bco, contrast, distil, dpo, grpo, kto, lora, rewards, rloo, scorers, sft
from ptcli.doctor.math.identity import Identity

_FAMILIES = (sft, dpo, kto, bco, contrast, scorers, grpo, rloo, distil, lora, rewards)


def _of(family: ModuleType) -> list[Identity]:
    return [each for each in vars(family).values() if isinstance(each, Identity)]


IDENTITIES: tuple[Identity, ...] = tuple(each for family in _FAMILIES for each in _of(family))
