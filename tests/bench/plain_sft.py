"""What a person writes with TRL alone: the arguments of sft.yaml, by hand."""

import sys

import torch
from clock import StepClock
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

model_path, data_path, output_dir = sys.argv[1:]
trainer = SFTTrainer(
    AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
    args=SFTConfig(
        output_dir, learning_rate=1e-4, per_device_train_batch_size=8, max_steps=100, max_length=128, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, seed=42,
        disable_tqdm=True,
    ),
    train_dataset=load_dataset("json", data_files=data_path, split="train"),
    processing_class=AutoTokenizer.from_pretrained(model_path),
    callbacks=[StepClock()],
)  # fmt: skip
trainer.train()
