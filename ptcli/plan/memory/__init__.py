"""What can be said of memory before anything runs, in closed form and without torch.

`architecture` and `adapters` count weights, `training` and `rollouts` say what a GPU holds of them, `trainer` does so
for a recipe's models, `facts` compares it with the GPUs.
"""

from ptcli.plan.memory.facts import GIB, describe_memory, describe_split, memory_facts, memory_problems
from ptcli.plan.memory.sources import count_parameters

__all__ = ["GIB", "count_parameters", "describe_memory", "describe_split", "memory_facts", "memory_problems"]
