"""Weight transfer to vLLM without CUDA: an engine named `gloo`, and the group that trainer and workers meet in.

vLLM's own engines need NCCL or CUDA IPC. This one is a plug-in: `register` is an entry point of the group
`vllm.general_plugins`, so vLLM calls it in the front end, in each engine and in each worker. The trainer is rank 0 of
the group and broadcasts one tensor after another; worker `i`, counted over all copies of the model, is rank `i + 1`.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroupGloo, Store

ENGINE = "gloo"
JOIN_TIMEOUT = 120.0
"""Seconds that everybody has to join the group: the server is up by then, so this is generous."""
SEND_TIMEOUT = 300.0
"""Seconds that the trainer may take to hand one tensor to the workers, who have nothing else to do."""
RECEIVE_TIMEOUT = 1800.0
"""Seconds that a worker waits for a tensor: under ZeRO-3 it is gathered from all ranks first."""


def register() -> None:
    """Make the engine known to this process. Imports it only when a server is started with it."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    # vLLM may load its plug-ins more than once in a process, and refuses a name that it knows.
    if ENGINE not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(ENGINE, "ptcli.rollouts.gloo_engine", "GlooWeightTransferEngine")


def open_store(address: str, port: int, *, listen: bool) -> Store:
    """The store through which the group is made: the trainer listens, the workers come to it, in any order.

    Made directly and not by torch's `rendezvous`, because that one obeys `TORCHELASTIC_USE_AGENT_STORE`: under a
    multi-process launcher the trainer would never listen. It listens on `address` only: left to itself, a TCPStore
    listens on every interface, and nobody needs a password.

    Raises OSError when the port is taken, torch's DistError (a RuntimeError) when nobody listens within `JOIN_TIMEOUT`.
    """
    from torch.distributed import TCPStore

    timeout = timedelta(seconds=JOIN_TIMEOUT)
    if not listen:
        return TCPStore(address, port, timeout=timeout, wait_for_workers=False)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    descriptor = socket.create_server((address, port), family=family).detach()  # the store closes it
    return TCPStore(address, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=descriptor)


def presence(rank: int) -> str:
    """The key that worker `rank` sets in the store when it is about to join."""
    return f"{ENGINE}/present/{rank}"


def join_group(store: Store, address: str, rank: int, world_size: int) -> ProcessGroupGloo:
    """The group of the trainer (rank 0) and all `world_size - 1` workers; waits until all have come.

    It knows nothing of the default group of either side. Raises a RuntimeError when somebody does not come in time.
    """
    from torch.distributed import PrefixStore, ProcessGroupGloo

    options = ProcessGroupGloo._Options()
    options._devices = [_device(address)]
    options._timeout = timedelta(seconds=JOIN_TIMEOUT)
    return ProcessGroupGloo(PrefixStore(ENGINE, store), rank, world_size, options)


def broadcast(group: ProcessGroupGloo, tensor: torch.Tensor, timeout: float) -> Any:
    """Start to send `tensor` from rank 0 to everybody; the others receive into theirs. Returns the pending work."""
    from torch.distributed import BroadcastOptions

    options = BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    options.timeout = timedelta(seconds=timeout)
    return group.broadcast([tensor], options)


def _device(address: str) -> Any:
    """Where this side listens: loopback stays on loopback, otherwise torch chooses (GLOO_SOCKET_IFNAME)."""
    from torch.distributed import ProcessGroupGloo

    from ptcli.rollouts.command import is_loopback

    if is_loopback(address):
        return ProcessGroupGloo.create_device(hostname=address)
    return ProcessGroupGloo.create_default_device()
