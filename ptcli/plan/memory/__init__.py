"""What can be said of memory before anything runs, in closed form and without torch."""

from ptcli.plan.memory.facts import GIB, count_parameters, describe_split, memory_facts, memory_problems

__all__ = ["GIB", "count_parameters", "describe_split", "memory_facts", "memory_problems"]
