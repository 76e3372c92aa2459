"""`python -m ptcli.merge.serve_child FOLDER RESULT`: a greedy completion of vLLM's, judged by transformers.

Writes `{"same": bool, "prompt", "served": text, "worst": token, "behind": nats}`. Two greedy completions part where two
tokens are about equally likely, and differ from there on, so what is asked is how much less likely each token of the
one is to the other than its own choice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

TOKENS = 16
LONGEST = 512
MARGIN = 0.5
"""Nats that two programs may differ on a token in bfloat16."""
QUESTION = "What is the capital of France?"


def main(argv: Sequence[str]) -> int:
    folder, result = argv
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = _prompt(tokenizer)
    served = _served(folder, prompt)
    behind = _behind(folder, prompt, served)
    worst = int(behind.argmax())
    found = {
        "same": bool(behind[worst] <= MARGIN),
        "prompt": tokenizer.decode(prompt),
        "served": tokenizer.decode(served),
        "worst": tokenizer.decode([served[worst]]),
        "behind": float(behind[worst]),
    }
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    return 0


def _prompt(tokenizer: Any) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(QUESTION)["input_ids"])
    chat = [{"role": "user", "content": QUESTION}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])


def _served(folder: str, prompt: list[int]) -> list[int]:
    from vllm import LLM, SamplingParams

    limit = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    longest = min(LONGEST, getattr(limit, "max_position_embeddings", LONGEST))
    engine = LLM(model=folder, enforce_eager=True, max_model_len=longest, max_num_seqs=1, seed=0)
    asked = SamplingParams(temperature=0.0, max_tokens=min(TOKENS, longest - len(prompt)), ignore_eos=True)
    return list(engine.generate([{"prompt_token_ids": prompt}], asked, use_tqdm=False)[0].outputs[0].token_ids)


def _behind(folder: str, prompt: list[int], served: list[int]) -> torch.Tensor:
    """For each served token: nats by which transformers thinks it less likely than the likeliest."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + served])).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(served)[:, None])[:, 0]
    return logits.max(-1).values - chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
