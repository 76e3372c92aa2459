"""Weight transfer to vLLM without CUDA."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in each of its processes (entry point `vllm.general_plugins`)."""
