"""GPUs and their driver, through NVML: what is there, who holds its memory, who reaches whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ptcli.doctor.checks.processes import command_of
from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs
from ptcli.plan.machine import read_machine

GIB = 2**30
_BUSY = 2 * GIB
"""Bytes in use on a GPU that are more than a driver or a display takes."""
_P2P = {
    1: "the chipset does not support it",
    2: "the GPUs do not support it",
    3: "the PCIe topology does not support it",
    4: "the driver's settings switch it off",
    5: "it is not supported",
}
"""NVML's reasons (nvmlGpuP2PStatus_t)."""
_NVIDIA = "0x10de"


@dataclass(frozen=True)
class Device:
    """One GPU as NVML sees it."""

    index: int
    uuid: str
    name: str
    memory: int
    used: int
    """Bytes of device memory."""
    holders: tuple[str, ...] = ()
    """Processes that hold some of it, as they are shown to a person."""
    mig: bool = False


@dataclass(frozen=True)
class Gpus:
    """What NVML and the PCI bus say."""

    devices: tuple[Device, ...] = ()
    visible: int = 0
    """How many of them CUDA_VISIBLE_DEVICES leaves."""
    restricted: bool = False
    """CUDA_VISIBLE_DEVICES is set."""
    driver: str = ""
    cuda: tuple[int, int] | None = None
    """Newest CUDA that the driver can do."""
    error: str = ""
    """Why NVML does not answer, on a machine with an NVIDIA GPU or driver."""
    pairs: tuple[tuple[int, int, int], ...] = ()
    """Pairs of GPUs that cannot read each other's memory, with NVML's reason."""
    redirected: tuple[str, ...] = ()
    """PCIe bridges whose access control sends traffic between GPUs through the CPU; empty when that cannot be read."""


def read_gpus(needs: Needs) -> Gpus:
    """Ask NVML. A machine without its library or driver has no GPUs, as far as CUDA is concerned."""
    try:
        import pynvml
    except ImportError:
        return Gpus(error="nvidia-ml-py is not installed" if _has_hardware() else "")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus(error=str(error) if _has_hardware() or "mismatch" in str(error).lower() else "")
    try:
        return _read(pynvml)
    finally:
        pynvml.nvmlShutdown()


def judge_gpus(gpus: Gpus, needs: Needs) -> list[Finding]:
    """What is there, and what stands in the way."""
    if gpus.error:
        fix = (
            "restart the machine"
            if "mismatch" in gpus.error.lower()
            else "install NVIDIA's driver (nvidia-smi must work)"
        )
        state = "warn" if needs.device == "cpu" else "fail"
        return [Finding("gpus", state, f"there is an NVIDIA GPU, and its driver does not answer: {gpus.error}", fix)]  # type: ignore[arg-type]
    if not gpus.devices:
        return [Finding("gpus", "pass", "no GPU: CPU and --smoke runs only")]
    return [_inventory(gpus), *_held(gpus, needs), *_slices(gpus), *_peers(gpus), *_access_control(gpus)]


def _inventory(gpus: Gpus) -> Finding:
    kinds: dict[str, int] = {}
    for device in gpus.devices:
        kind = f"{device.name} ({device.memory / GIB:.0f} GiB)"
        kinds[kind] = kinds.get(kind, 0) + 1
    told = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) + f", driver {gpus.driver}"
    if gpus.restricted and gpus.visible < len(gpus.devices):
        told += f"; CUDA_VISIBLE_DEVICES leaves {gpus.visible}"
        if not gpus.visible:
            return Finding("gpus", "warn", told, "unset CUDA_VISIBLE_DEVICES")
    return Finding("gpus", "pass", told)


def _held(gpus: Gpus, needs: Needs) -> Iterator[Finding]:
    """vLLM refuses to start where less is free than its share, and training runs out of memory later."""
    for device in gpus.devices:
        refused = {str(device.index), device.uuid} & set(needs.engine_gpus)
        if refused and device.memory - device.used < needs.utilization * device.memory:
            free = 100 * (device.memory - device.used) // device.memory
            message = (
                f"GPU {device.index}: {free} % of its memory are free, and vLLM starts with {needs.utilization:.0%}"
                f"{_who(device)}"
            )
            fix = f"end what holds it, or rollouts.gpu_memory_utilization={max(free - 5, 0) / 100:g}"
            yield Finding("gpus", "fail", message, fix)
        elif device.used > _BUSY and needs.device != "cpu":
            used = f"{device.used / GIB:.1f} of {device.memory / GIB:.0f} GiB"
            message = f"GPU {device.index}: {used} are in use{_who(device)}"
            yield Finding("gpus", "warn", message, f"nvidia-smi -i {device.index}, and end what holds it")


def _who(device: Device) -> str:
    return f": {', '.join(device.holders)}" if device.holders else "; who holds the rest cannot be seen from here"


def _slices(gpus: Gpus) -> Iterator[Finding]:
    cut = [str(device.index) for device in gpus.devices if device.mig]
    if cut:
        message = f"GPU {', '.join(cut)}: MIG is on; a process sees one slice, and NCCL joins no two of one GPU"
        yield Finding("mig", "warn", message, f"for whole GPUs: sudo nvidia-smi -i {','.join(cut)} -mig 0")


def _peers(gpus: Gpus) -> Iterator[Finding]:
    if len(gpus.devices) < 2:
        return
    if not gpus.pairs:
        yield Finding("p2p", "pass", "every GPU reads every other's memory directly")
        return
    shown = ", ".join(f"{one}-{other}" for one, other, _ in gpus.pairs[:8]) + (" ..." if len(gpus.pairs) > 8 else "")
    why = "; ".join(sorted({_P2P.get(status, "for an unknown reason") for _, _, status in gpus.pairs}))
    message = f"no peer-to-peer between GPUs {shown} ({why}): NCCL goes through main memory, which is slower"
    yield Finding("p2p", "warn", message, "if NCCL hangs: launch.env.NCCL_P2P_DISABLE=1, which both sides get")


def _access_control(gpus: Gpus) -> Iterator[Finding]:
    if len(gpus.devices) < 2 or not gpus.redirected:
        return
    first = gpus.redirected[0]
    message = (
        f"PCIe access control (ACS) is on at {len(gpus.redirected)} bridges ({first}, ...): traffic between GPUs goes "
        "through the CPU, slowly, or hangs"
    )
    fix = f"on bare metal, for each: sudo setpci -s {first} ECAP_ACS+0x6.w=0000 (until the next boot)"
    yield Finding("acs", "warn", message, fix)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(nvml: Any) -> Gpus:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    machine = read_machine(None)
    version = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return Gpus(
        devices=tuple(_device(nvml, index, handle) for index, handle in enumerate(handles)),
        visible=len(machine.gpus),
        restricted=machine.visible is not None,
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        cuda=(version // 1000, version % 1000 // 10),
        pairs=tuple(_unreachable(nvml, handles)),
        redirected=tuple(redirecting_bridges()) if len(handles) > 1 else (),
    )


def _device(nvml: Any, index: int, handle: Any) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    pids: list[int] = []
    with suppress(nvml.NVMLError):
        pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    mig = False
    with suppress(nvml.NVMLError):
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    return Device(
        index, _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle)), int(memory.total),
        int(memory.used), tuple(command_of(pid) for pid in pids), mig,
    )  # fmt: skip


def _unreachable(nvml: Any, handles: list[Any]) -> Iterator[tuple[int, int, int]]:
    for one, other in combinations(range(len(handles)), 2):
        with suppress(nvml.NVMLError):
            status = nvml.nvmlDeviceGetP2PStatus(handles[one], handles[other], nvml.NVML_P2P_CAPS_INDEX_READ)
            if status != nvml.NVML_P2P_STATUS_OK:
                yield one, other, int(status)


def redirecting_bridges(root: Path = Path("/sys/bus/pci/devices")) -> Iterator[str]:
    """PCIe bridges with request redirection or source validation on (NCCL's troubleshooting page: `SrcValid+`).

    Only root can read a device's extended configuration; for others there is nothing to be found.
    """
    for folder in sorted(root.glob("*")):
        with suppress(OSError):
            if (folder / "class").read_text().startswith("0x0604") and acs_control(
                (folder / "config").read_bytes()
            ) & 0b101:
                yield folder.name


def acs_control(config: bytes) -> int:
    """The ACS control register in a PCIe configuration space; 0 when it has none or was not read as far.

    Extended capabilities begin at 0x100: 16 bits of id, 4 of version, 12 with the place of the next.
    """
    place, seen = 0x100, set()
    while 0x100 <= place <= len(config) - 8 and place not in seen:
        seen.add(place)
        header = int.from_bytes(config[place : place + 4], "little")
        if header & 0xFFFF == 0x000D:
            return int.from_bytes(config[place + 6 : place + 8], "little")
        place = header >> 20
    return 0


def _has_hardware(root: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether an NVIDIA display or compute device is on the PCI bus."""
    for folder in root.glob("*"):
        with suppress(OSError):
            if (folder / "vendor").read_text().strip() == _NVIDIA and (folder / "class").read_text().startswith("0x03"):
                return True
    return False


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
