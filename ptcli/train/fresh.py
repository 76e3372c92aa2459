"""Models of random weights, from an architecture alone (`from: config`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from ptcli.errors import WorkError


def load_fresh(path: str, auto_class: str, arguments: Mapping[str, Any]) -> PreTrainedModel:
    """A model of the config at `path`, with random weights that follow from the run's seed alone.

    The seed is the one that `set_seed` was last called with; whatever was drawn since does not matter, and nothing is
    drawn from the caller's generators. So two models of one config are the same one: a policy and its reference.

    Args:
        path: folder or hub id with a config.json.
        auto_class: name of the transformers class that picks the model's, as "AutoModelForCausalLM".
        arguments: those of `from_pretrained`; the config's own fields among them change the architecture.
    """
    given = dict(arguments)
    made = {name: given.pop(name) for name in ("dtype", "attn_implementation") if given.get(name) is not None}
    code = {name: given[name] for name in ("trust_remote_code",) if given.get(name) is not None}
    config, _ = AutoConfig.from_pretrained(path, return_unused_kwargs=True, **given)
    with torch.random.fork_rng(devices=[]):  # it is made on the CPU, as `from_pretrained` makes it
        torch.manual_seed(torch.initial_seed())
        try:
            model = getattr(transformers, auto_class).from_config(config, **made, **code)
        except ValueError as error:
            raise WorkError(f"{path}: {error}") from error
    _take_generation_config(model, path, given.get("revision"))
    return model.eval()  # as after `from_pretrained`


def _take_generation_config(model: PreTrainedModel, path: str, revision: str | None) -> None:
    """How the model is to generate: as its folder says, where that has something to say."""
    if not model.can_generate():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:
        return
