"""GPUs as NVML describes them, and PCIe bridges as sysfs does."""

from __future__ import annotations

import struct
import types
from pathlib import Path

import pytest

from ptcli.doctor.checks.gpus import Device, Gpus, acs_control, judge_gpus, read_gpus, redirecting_bridges
from ptcli.doctor.needs import Needs

GIB = 2**30
H100 = "NVIDIA H100 80GB HBM3"


def device(index: int, used: int = 0, holders: tuple[str, ...] = (), mig: bool = False) -> Device:
    return Device(index, f"GPU-{index}", H100, 80 * GIB, used, holders, mig)


def box(*devices: Device, **facts) -> Gpus:
    return Gpus(devices, **({"visible": len(devices), "driver": "580.95.05", "cuda": (13, 0)} | facts))


def judged(gpus: Gpus, needs: Needs | None = None) -> dict[str, tuple[str, str, str]]:
    return {each.name: (each.state, each.message, each.fix) for each in judge_gpus(gpus, needs or Needs())}


def test_no_gpu_is_said_plainly() -> None:
    (finding,) = judge_gpus(Gpus(), Needs())
    assert (finding.state, finding.message) == ("pass", "no GPU: CPU and --smoke runs only")


def test_a_driver_that_does_not_answer_fails_unless_the_recipe_is_for_a_cpu() -> None:
    gpus = Gpus(error="Driver/library version mismatch")
    assert judged(gpus)["gpus"][0] == "fail"
    assert judged(gpus)["gpus"][2] == "restart the machine"
    assert judged(gpus, Needs("r.yaml", "cpu"))["gpus"][0] == "warn"


def test_a_sound_box_is_counted() -> None:
    found = judged(box(*map(device, range(8))))
    assert found["gpus"][:2] == ("pass", f"8 x {H100} (80 GiB), driver 580.95.05")
    assert found["p2p"][0] == "pass"
    assert set(found) == {"gpus", "p2p"}


def test_what_cuda_visible_devices_hides_is_said() -> None:
    assert "leaves 2" in judged(box(*map(device, range(8)), visible=2, restricted=True))["gpus"][1]
    state, _, fix = judged(box(device(0), visible=0, restricted=True))["gpus"]
    assert (state, fix) == ("warn", "unset CUDA_VISIBLE_DEVICES")


def test_who_holds_memory_is_named() -> None:
    held = device(1, 40 * GIB, ("pid 12 (python serve.py)",))
    (finding,) = [each for each in judge_gpus(box(device(0), held), Needs()) if each.state == "warn"]
    assert finding.message == "GPU 1: 40.0 of 80 GiB are in use: pid 12 (python serve.py)"
    assert not [each for each in judge_gpus(box(device(0), held), Needs("r.yaml", "cpu")) if each.state == "warn"]


@pytest.mark.parametrize("token", ["1", "GPU-1"])
def test_vllm_does_not_start_where_its_share_is_not_free(token: str) -> None:
    held = device(1, 40 * GIB, ("pid 12 (python serve.py)",))
    needs = Needs("r.yaml", "cuda", engine_gpus=(token,))
    (finding,) = [each for each in judge_gpus(box(device(0), held), needs) if each.state == "fail"]
    assert finding.message == "GPU 1: 50 % of its memory are free, and vLLM starts with 90%: pid 12 (python serve.py)"
    assert finding.fix.endswith("rollouts.gpu_memory_utilization=0.45")
    less = Needs("r.yaml", "cuda", engine_gpus=(token,), utilization=0.4)
    assert not [each for each in judge_gpus(box(device(0), held), less) if each.state == "fail"]


def test_mig_access_control_and_missing_peers_are_warnings() -> None:
    gpus = box(device(0, mig=True), device(1), pairs=((0, 1, 2),), redirected=("0000:00:01.0", "0000:00:02.0"))
    found = judged(gpus)
    assert found["mig"][0] == found["p2p"][0] == found["acs"][0] == "warn"
    assert "-mig 0" in found["mig"][2]
    assert "0-1 (the GPUs do not support it)" in found["p2p"][1]
    assert "NCCL_P2P_DISABLE" in found["p2p"][2]
    assert "setpci -s 0000:00:01.0 ECAP_ACS+0x6.w=0000" in found["acs"][2]


def test_one_gpu_has_no_peers() -> None:
    assert set(judged(box(device(0), redirected=("0000:00:01.0",)))) == {"gpus"}


# --- reading ---------------------------------------------------------------------------------------------------------


class NVML(types.ModuleType):
    """What is read of pynvml, for two GPUs that cannot reach each other."""

    NVML_DEVICE_MIG_ENABLE = 1
    NVML_P2P_CAPS_INDEX_READ = 0
    NVML_P2P_STATUS_OK = 0

    class NVMLError(Exception):
        pass

    def __init__(self, fails: str = ""):
        super().__init__("pynvml")
        self.fails, self.open = fails, False

    def nvmlInit(self) -> None:
        if self.fails:
            raise self.NVMLError(self.fails)
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12080

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA L4"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(total=24 * GIB, used=GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list:
        raise self.NVMLError("no permission")

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, what: int) -> int:
        return 2


def test_nvml_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = NVML()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    gpus = read_gpus(Needs())
    assert gpus.devices == tuple(Device(index, f"GPU-{index}", "NVIDIA L4", 24 * GIB, GIB) for index in (0, 1))
    assert (gpus.visible, gpus.restricted, gpus.driver, gpus.cuda) == (1, True, "570.1", (12, 8))
    assert gpus.pairs == ((0, 1, 2),)
    assert not nvml.open


def test_a_driver_of_another_version_than_its_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", NVML("Driver/library version mismatch"))
    assert read_gpus(Needs()).error == "Driver/library version mismatch"


def space(*capabilities: tuple[int, int], control: int) -> bytes:
    """A configuration space whose extended capabilities are these: id and place of the next."""
    config = bytearray(0x1000)
    place = 0x100
    for identity, following in capabilities:
        config[place : place + 4] = struct.pack("<I", identity | 1 << 16 | following << 20)
        if identity == 0x000D:
            config[place + 6 : place + 8] = struct.pack("<H", control)
        place = following
    return bytes(config)


def test_the_control_register_is_found_along_the_chain() -> None:
    assert acs_control(space((0x0001, 0x148), (0x000D, 0), control=0x5D)) == 0x5D
    assert acs_control(space((0x0001, 0x148), (0x0002, 0), control=0x5D)) == 0
    assert acs_control(space((0x0001, 0x100), control=0)) == 0, "a chain that bites its tail"
    assert acs_control(b"\0" * 64) == 0, "all that others than root can read"


def test_only_bridges_that_redirect_are_named(tmp_path: Path) -> None:
    for name, kind, control in (("a", "0x060400", 0x5D), ("b", "0x060400", 0), ("c", "0x030200", 0x5D)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "class").write_text(kind + "\n")
        (tmp_path / name / "config").write_bytes(space((0x000D, 0), control=control))
    (tmp_path / "d").mkdir()
    assert list(redirecting_bridges(tmp_path)) == ["a"]
