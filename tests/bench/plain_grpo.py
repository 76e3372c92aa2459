"""What a person writes with TRL alone: the arguments of grpo.yaml, by hand."""

import sys

import torch
from clock import StepClock
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


def exact_match(completions, answer, **kwargs):
    return [float(turns[0]["content"].strip() == right) for turns, right in zip(completions, answer, strict=True)]


model_path, data_path, output_dir = sys.argv[1:]
trainer = GRPOTrainer(
    AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
    reward_funcs=exact_match,
    args=GRPOConfig(
        output_dir, learning_rate=1e-4, per_device_train_batch_size=32, num_generations=8, max_completion_length=8,
        max_steps=60, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, seed=42, disable_tqdm=True,
    ),
    train_dataset=load_dataset("json", data_files=data_path, split="train"),
    processing_class=AutoTokenizer.from_pretrained(model_path),
    callbacks=[StepClock()],
)  # fmt: skip
trainer.train()
