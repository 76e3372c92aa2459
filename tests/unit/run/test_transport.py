"""What NCCL's own lines say of the ways it took."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptcli.run.transport import describe_transport, find_transport, transport_lines

INFINIBAND = """\
node1:120890:121560 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB bond0:10.0.0.1<0>
node1:120890:121560 [0] NCCL INFO Using network IB
node1:120890:121560 [0] NCCL INFO Channel 00/0 : 7[7] -> 8[0] [send] via NET/IB/0/GDRDMA
node1:120890:121560 [0] NCCL INFO Channel 01/0 : 7[7] -> 8[0] [send] via NET/IB/0(1)/GDRDMA
node1:120890:121560 [0] NCCL INFO Channel 00/0 : 15[7] -> 0[0] [receive] via NET/IB/0/GDRDMA
node1:120890:121560 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read
node1:120890:121560 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM/read
node1:120890:121560 [0] NCCL INFO Channel 02/0 : 0[0] -> 1[1] via P2P/CUMEM
"""
SOCKETS = """\
(Worker pid=7) node1:1475:2146 [0] NCCL INFO NET/Socket : Using [0]eth0:172.17.0.2<0> [1]eth1:10.0.0.2<0>
(Worker pid=7) node1:1475:2146 [0] NCCL INFO Using network Socket
[rank0]: node1:1481:2165 [3] NCCL INFO Channel 00 : 3[b1000] -> 4[18000] [send] via NET/Socket/0
node1:1480:2169 [2] NCCL INFO Channel 00 : 2[af000] -> 3[b1000] via P2P/IPC
node1:1477:2150 [1] NCCL INFO Channel 00 : 1[1a000] -> 2[af000] via direct shared memory
node1:1477:2150 [1] NCCL INFO Channel 01/0 : 1[1] -> 2[2] via SHM/direct/direct
"""
PLUGIN = """\
[1,1]<stdout>:worker-0:27:72 [1] NCCL INFO Using network AWS Libfabric
[1,1]<stdout>:worker-0:27:72 [1] NCCL INFO Channel 00 : 1[101d0] -> 8[101c0] [send] via NET/AWS Libfabric/0/GDRDMA
worker-0:984:1257 [4] NCCL INFO Channel 06/0 : 36[4] -> 20[4] [send] via NET/IBext_v8/3
worker-0:984:1257 [4] NCCL INFO Channel 07/0 : 36[4] -> 20[4] [send] via NET/IB/3/Shared
"""


def test_infiniband_with_gpudirect() -> None:
    found = find_transport(INFINIBAND.splitlines())

    assert found.channels == {"P2P/CUMEM": 3, "NET/IB": 2}, "a channel counts where it is sent"
    assert (found.direct, found.networks, found.devices) == (2, ("IB",), ("mlx5_0", "mlx5_1"))
    assert describe_transport(found) == [
        "NCCL went over P2P/CUMEM (3 channels), NET/IB (2 channels); devices mlx5_0, mlx5_1",
        "GPUDirect RDMA ([GDRDMA]) on all network channels",
    ]


def test_sockets_are_worth_a_warning() -> None:
    found = find_transport(SOCKETS.splitlines())

    assert found.channels == {"NET/Socket": 1, "P2P/IPC": 1, "SHM": 2}
    assert found.devices == ("eth0", "eth1")
    assert describe_transport(found)[-1].startswith("warning: NCCL used TCP sockets between nodes")


def test_plugins_by_the_name_that_nccl_gives_them_and_infiniband_without_gpudirect() -> None:
    found = find_transport(PLUGIN.splitlines())

    assert found.channels == {"NET/AWS Libfabric": 1, "NET/IB": 2}
    assert found.networks == ("AWS Libfabric",)
    assert "GPUDirect RDMA ([GDRDMA]) on 1 of 3 network channels" in describe_transport(found)
    without = [line for line in PLUGIN.splitlines() if "GDRDMA" not in line]
    assert "warning: InfiniBand without GPUDirect RDMA" in "\n".join(describe_transport(find_transport(without)))


@pytest.mark.parametrize("lines", [[], ["step 3: Channel 00/0 is on"], ["{'loss': 1.0}"]])
def test_a_log_without_nccl_says_nothing(lines: list[str]) -> None:
    assert describe_transport(find_transport(lines)) == []


def test_the_network_alone_where_no_channel_is_named() -> None:
    lines = INFINIBAND.splitlines()[:2]

    assert describe_transport(find_transport(lines)) == ["NCCL's network: IB (mlx5_0, mlx5_1)"]


def test_logs_of_both_sides_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "trainer.log").write_text(INFINIBAND)
    (tmp_path / "trainer.1.log").write_bytes(SOCKETS.encode() + b"\xff\xfe")
    logs = [tmp_path / "trainer.log", tmp_path / "trainer.1.log", tmp_path / "rollouts.log"]

    assert transport_lines(logs)[0].startswith("NCCL went over P2P/CUMEM (3 channels), NET/IB (2 channels)")
