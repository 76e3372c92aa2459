"""The vLLM rollout server: its command, its readiness, and weight sync without CUDA."""
