"""The worker's side of the `gloo` weight transfer. Imported inside vLLM only, by `ptcli.rollouts.gloo.register`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from ptcli.rollouts.gloo import RECEIVE_TIMEOUT, broadcast, join_group, open_store, presence


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the trainer waits, and how many meet there, the trainer included."""

    master_address: str
    master_port: int
    world_size: int


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The tensors that follow, in this order. Types as torch names them (`float32`)."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives checkpoint-format weights and hands them to vLLM's layer-wise reload, as the NCCL engine does."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: Any = None
    _awaited: frozenset[str] = frozenset()
    """Parameters of the model that the update under way has not brought yet."""

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the trainer's group. A later trainer on the same server comes here again."""
        self.shutdown()
        parallel = self.parallel_config
        # data_parallel_index is the copy's number even for dense models, whose copies otherwise think themselves alone.
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = open_store(init_info.master_address, init_info.master_port, listen=False)
        store.set(presence(rank), "")
        self.group = join_group(store, init_info.master_address, rank, init_info.world_size)

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)
        # Quantised layers are rebuilt from tensors with other names, so there is nothing to compare.
        names = () if self.model_config.quantization else (name for name, _ in self.model.named_parameters())
        self._awaited = frozenset(names)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self._awaited:  # vLLM keeps the old values of such parameters and says nothing
            raise RuntimeError(
                f"the update did not bring {len(self._awaited)} of the server's parameters, such as "
                f"{min(self._awaited)}: trainer and server do not have the same model"
            )

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one batch of tensors. Unlike the base, there is no accelerator to wait for."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        if self.group is None:
            raise RuntimeError("no trainer has joined: /init_weight_transfer_engine comes first")
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check

        tensors = self._receive(update_info)
        try:
            with disable_mtp_completeness_check():  # an update need not hold every tensor
                loaded = self.model.load_weights(tensors)
            for _ in tensors:  # what the model does not want is received all the same: the trainer waits for it
                pass
            self._awaited = self._awaited - loaded if loaded is not None else frozenset()
        except BaseException:
            self.shutdown()  # closes the sockets, so that the trainer does not wait for a worker that gave up
            raise

    def _receive(self, update_info: GlooUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        described = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        for name, dtype, shape in described:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            broadcast(self.group, tensor, RECEIVE_TIMEOUT).wait()
            yield name, tensor

    def shutdown(self) -> None:
        self.group = None

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Any], trainer_args: Any) -> None:
        """Refused. The base class demands it, but the trainer's side is `ptcli.rollouts.client`, which also watches the
        server's answer meanwhile."""
        raise RuntimeError("weights are sent over gloo by ptcli.rollouts.client")
