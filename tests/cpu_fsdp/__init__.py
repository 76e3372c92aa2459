"""FSDP on a CPU, for tests alone: accelerate has none and silently trains with DDP there (launch.md, section 4).

`python -m tests.cpu_fsdp train RECIPE ...` is the ptcli command without the one refusal that says so; a recipe with
the callback `tests.cpu_fsdp.shim:FsdpOnCpu` has accelerate shard in the trainer's processes.
"""
