"""Train the shipped model: a small Llama that answers sums right about half the time, so that there is more to learn.

What it is taught is wrong in three rows out of ten, and in one out of four the answer is boxed: a model that samples
from this has something to gain both from `ptcli.builtin.rewards:exact_match`, which wants the bare number, and from
`trl.rewards.accuracy_reward`, which wants the box. One CPU core does it in about three to four minutes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ptcli.builtin.make_data import all_sums, question, wrong_sum
from ptcli.builtin.make_tokenizer import MAX_LENGTH

SEED = 0
STEPS = 2600
BATCH = 64
LEARNING_RATE = 3e-3
WRONG, BOXED = 0.3, 0.25
"""Shares of the rows that have a wrong answer, and a boxed one."""
PLAIN, INSTRUCTED = 0.1, 0.1
"""Shares of the batches whose prompts have no chat around them, and whose chats have a system message."""
SYSTEM = ("You are a helpful assistant.", "You are a calculator.", "Answer with a number.")
IGNORED = -100
"""Label of a token that is not learnt."""

Example = tuple[list[int], int]
"""The tokens of a row, and how many of them are the prompt."""
Render = Callable[[str], str]
"""From a question to the text of a prompt."""


def model_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Heads of 32 because vLLM's CPU kernels have no smaller ones; four and two so that two GPUs can share them."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def train_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A model trained from `SEED` on one core, in float32."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    model = LlamaForCausalLM(model_config(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    for step in range(STEPS):
        loss = model(**_batch(tokenizer, rng)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{STEPS} loss {loss.item():.3f}", flush=True)
    model.generation_config = _generation(tokenizer)
    return model.eval()


def _rate(step: int) -> float:
    """Share of the learning rate: up over the first 50 steps, then down to nothing along a cosine."""
    return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def _generation(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    return GenerationConfig(do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def _batch(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> dict[str, torch.Tensor]:
    """Arguments of the model, `[BATCH, longest]` each, padded on the right; only answers are learnt."""
    render = _form(tokenizer, rng)
    examples = [_example(tokenizer, render, rng) for _ in range(BATCH)]
    longest = max(len(tokens) for tokens, _ in examples)
    ids = torch.full((BATCH, longest), tokenizer.pad_token_id)
    labels = torch.full((BATCH, longest), IGNORED)
    for row, (tokens, prompt) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
    return {"input_ids": ids, "attention_mask": ids != tokenizer.pad_token_id, "labels": labels}


def _example(tokenizer: PreTrainedTokenizerBase, render: Render, rng: random.Random) -> Example:
    a, b = rng.choice(_SUMS)
    number = str(wrong_sum(a + b, rng) if rng.random() < WRONG else a + b)
    answer = f"\\boxed{{{number}}}" if rng.random() < BOXED else number
    prompt = tokenizer.encode(render(question(a, b)))
    return prompt + tokenizer.encode(answer + tokenizer.eos_token), len(prompt)


def _form(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Render:
    """How the questions of one batch are put. All alike, because mixed lengths would be half padding."""
    kind = rng.random()
    if kind < PLAIN:
        return str
    system = [{"role": "system", "content": rng.choice(SYSTEM)}] if kind < PLAIN + INSTRUCTED else []

    def chat(asked: str) -> str:
        messages = [*system, {"role": "user", "content": asked}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return chat


_SUMS = all_sums()
