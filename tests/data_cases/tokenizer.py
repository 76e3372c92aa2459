"""A tiny byte-level BPE tokenizer with a ChatML template, and the variants of it that cases name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ("is", "Ġis", "Th", "Wh", "an", "at", "er", "sw", "Ġ+", "ĠTh", "Ġan", "What", "swer", "ĠThe", "Ġanswer")
NUMBERS = tuple(str(number) for number in range(119))
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LENIENT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, variant: str = "") -> Path:
    """Write a variant's tokenizer, and the config of a small model that has it; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    bos = variant in ("bos", "bostemplate")
    config = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if variant == "nopad":
        del config["pad_token"]
    if bos:
        config["bos_token"] = "<s>"
    model = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 400,
        "max_position_embeddings": 1024,
    }
    _write(folder / "tokenizer.json", _fast_tokenizer(bos=bos))
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "config.json", model)
    template = _template(variant)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _template(variant: str) -> str | None:
    own = {
        "": CHATML, "bos": CHATML, "nopad": CHATML, "lenient": LENIENT, "notemplate": None,
        "bostemplate": "{{ bos_token }}" + CHATML,
        "think": CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"),
    }  # fmt: skip
    if variant in own:
        return own[variant]
    import trl

    return (Path(trl.__file__).parent / f"chat_templates/{variant}.jinja").read_text()


def _fast_tokenizer(*, bos: bool) -> dict[str, Any]:
    special = [*SPECIAL, *(["<s>"] if bos else [])]
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    for letter in _byte_letters():
        vocabulary.setdefault(letter, len(vocabulary))
    merges = _merges(vocabulary)
    if bos:
        vocabulary["<s>"] = len(vocabulary)
    sequence: list[Any] = [{"Sequence": {"id": "A", "type_id": 0}}]
    start = {"<s>": {"id": "<s>", "ids": [vocabulary["<s>"]], "tokens": ["<s>"]}} if bos else {}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **flags} for token in special],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "single": [*([{"SpecialToken": {"id": "<s>", "type_id": 0}}] if bos else []), *sequence],
            "special_tokens": start,
        },
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": merges},
    }  # fmt: skip


def _merges(vocabulary: dict[str, int]) -> list[list[str]]:
    """Merges that make the words and the numbers behind a space; each new token joins the vocabulary."""
    merges = []
    for token in (*WORDS, *(f"Ġ{number}" for number in NUMBERS)):
        left = next(
            token[:end] for end in range(len(token) - 1, 0, -1) if {token[:end], token[end:]} <= vocabulary.keys()
        )
        merges.append([left, token[len(left) :]])
        vocabulary[token] = len(vocabulary)
    return merges


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: itself if visible, else the next from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]
