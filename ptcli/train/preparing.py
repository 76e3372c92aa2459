"""What the trainers of TRL 1.12 make of their rows while they are constructed, without constructing one. Light.

Four classes have a method for it, `_prepare_dataset`, which is called here on an object that has the few attributes
that it reads. The others do it in their constructors: here stand the same calls in the same order. Both are compared
with the real trainers in tests/integration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

Sets = dict[str, Any]
"""Datasets: the training rows under `train`, and evaluation sets under `eval` or `eval.NAME`."""
Prepare = Callable[[Sets, Any, Any], Sets]
"""From rows, the trainer's config and its tokenizer to rows as tokens."""

TRAIN = "train"
_DEFAULT_LENGTH = 512
"""What the trainers that prepare in their constructor take for `max_length: null`."""


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def prepare_sft(sets: Sets, arguments: Any, processor: Any) -> Sets:
    from trl import SFTTrainer
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    columns = sets[TRAIN].column_names
    only_completion = arguments.completion_only_loss
    marked = not arguments.assistant_only_loss or has_generation_markers(processor.chat_template)
    trainer = SimpleNamespace(
        _tokenizer=_tokenizer(processor),
        completion_only_loss={"prompt", "completion"} <= set(columns) if only_completion is None else only_completion,
        chat_template=None if marked else get_training_chat_template(processor),
    )
    packing = dict.fromkeys(sets, arguments.packing if arguments.eval_packing is None else arguments.eval_packing)
    packing[TRAIN] = arguments.packing
    return {
        name: SFTTrainer._prepare_dataset(trainer, rows, processor, arguments, packing[name], None, name)
        for name, rows in sets.items()
    }


def prepare_dpo(sets: Sets, arguments: Any, processor: Any) -> Sets:
    from trl import DPOTrainer

    trainer = SimpleNamespace(_tokenizer=_tokenizer(processor))
    return {name: DPOTrainer._prepare_dataset(trainer, rows, processor, arguments, name) for name, rows in sets.items()}


def prepare_kto(sets: Sets, arguments: Any, processor: Any) -> Sets:
    from trl import KTOTrainer

    trainer = SimpleNamespace(
        _tokenizer=_tokenizer(processor),
        calculate_KL=arguments.loss_type not in ["apo_zero_unpaired"],
        desirable_weight=arguments.desirable_weight,
        undesirable_weight=arguments.undesirable_weight,
    )
    return {name: KTOTrainer._prepare_dataset(trainer, rows, processor, arguments, name) for name, rows in sets.items()}


def prepare_reward(sets: Sets, arguments: Any, processor: Any) -> Sets:
    from trl import RewardTrainer

    return {name: RewardTrainer._prepare_dataset(None, rows, processor, arguments, name) for name, rows in sets.items()}


def prepare_cpo(sets: Sets, arguments: Any, processor: Any) -> Sets:
    from trl.experimental.cpo import CPOTrainer

    return _prepare_pairs(CPOTrainer, sets, arguments, processor)


def prepare_orpo(sets: Sets, arguments: Any, processor: Any) -> Sets:
    from trl.experimental.orpo import ORPOTrainer

    return _prepare_pairs(ORPOTrainer, sets, arguments, processor)


def _prepare_pairs(trainer_class: Any, sets: Sets, arguments: Any, processor: Any) -> Sets:
    from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt

    trainer = trainer_class.__new__(trainer_class)
    trainer.is_encoder_decoder = False
    trainer.processing_class = processor
    trainer.max_length = _DEFAULT_LENGTH if arguments.max_length is None else arguments.max_length
    trainer.max_completion_length = arguments.max_completion_length
    processes = arguments.dataset_num_proc
    prepared = {}
    for name, rows in sets.items():
        rows = rows.map(maybe_extract_prompt, num_proc=processes)
        rows = rows.map(maybe_apply_chat_template, fn_kwargs={"processing_class": processor}, num_proc=processes)
        prepared[name] = rows.map(trainer.tokenize_row, num_proc=processes)
    return prepared


def prepare_bco(sets: Sets, arguments: Any, processor: Any) -> Sets:
    from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt, maybe_unpair_preference_dataset
    from trl.experimental.bco import bco_trainer

    processes = arguments.dataset_num_proc
    lengths = {
        "prefix": "",
        "is_encoder_decoder": False,
        "tokenizer": processor,
        "max_length": _DEFAULT_LENGTH if arguments.max_length is None else arguments.max_length,
        "max_completion_length": None,
    }
    tokenizers = {"tokenizer": processor, "embedding_tokenizer": None}
    prepared = {}
    for name, rows in sets.items():
        rows = rows.map(maybe_extract_prompt, num_proc=processes)
        rows = maybe_unpair_preference_dataset(rows, processes)
        rows = rows.map(maybe_apply_chat_template, fn_kwargs={"processing_class": processor}, num_proc=processes)
        rows = rows.map(bco_trainer._tokenize, batched=True, fn_kwargs=tokenizers, num_proc=processes)
        prepared[name] = rows.map(bco_trainer._process_tokens, fn_kwargs=lengths, num_proc=processes)
    return prepared


def prepare_prm(sets: Sets, arguments: Any, processor: Any) -> Sets:
    from datasets import Features, Sequence, Value
    from trl.experimental.prm import PRMTrainer

    if "input_ids" in sets[TRAIN].column_names:
        return sets
    settings = {
        "tokenizer": processor,
        "step_separator": arguments.step_separator,
        "max_length": arguments.max_length,
        "max_completion_length": arguments.max_completion_length,
        "train_on_last_step_only": arguments.train_on_last_step_only,
    }
    features = Features({name: Sequence(Value("int64")) for name in ("labels", "input_ids")})
    return {
        name: rows.map(
            PRMTrainer.tokenize_row,
            fn_kwargs=settings | {"is_eval": name != TRAIN},
            num_proc=arguments.dataset_num_proc,
            remove_columns=list(rows.features),
            features=features,
        )
        for name, rows in sets.items()
    }


def prepare_prompts(sets: Sets, arguments: Any, processor: Any) -> Sets:
    """For a trainer that wants prompts as tokens and prepares nothing itself."""
    from ptcli.train.prompts import tokenize_prompts

    return {name: tokenize_prompts(rows, processor, f"data.{name}") for name, rows in sets.items()}


PREPARES: Mapping[str, Prepare] = MappingProxyType(
    {
        "trl:SFTTrainer": prepare_sft,
        "trl:DPOTrainer": prepare_dpo,
        "trl:KTOTrainer": prepare_kto,
        "trl:RewardTrainer": prepare_reward,
        "trl.experimental.cpo:CPOTrainer": prepare_cpo,
        "trl.experimental.orpo:ORPOTrainer": prepare_orpo,
        "trl.experimental.bco:BCOTrainer": prepare_bco,
        "trl.experimental.prm:PRMTrainer": prepare_prm,
        "trl.experimental.ppo:PPOTrainer": prepare_prompts,
    }
)
"""Import string of a trainer, as METHODS has it -> how it prepares. The others take their rows as they are."""

READS = (
    "max_length", "max_completion_length", "truncation_mode", "packing", "packing_strategy", "eval_packing",
    "dataset_text_field", "completion_only_loss", "assistant_only_loss", "shuffle_dataset", "use_liger_kernel",
    "step_separator", "train_on_last_step_only", "seed", "dataset_num_proc",
)  # fmt: skip
"""The fields of the trainers' configs that decide what becomes of a row."""

READS_FOR_NEIGHBOURS = ("loss_type", "per_device_train_batch_size")
"""Those that do so where a completion is also put beside the prompt of its neighbour in the batch."""
