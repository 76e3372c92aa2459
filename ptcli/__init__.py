"""ptcli: one YAML recipe to a supervised, checked post-training run with TRL and vLLM."""

__version__ = "0.1.0"
