"""Which checkpoints are whole, and which weights are good."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ptcli.run.checkpoints import Expected, Torn, check_weights, list_checkpoints, open_checkpoint

_SPARE = {
    "plain": {"training_args.bin"},
    "deepspeed": {"training_args.bin", "model.safetensors"},
    "fsdp": {"training_args.bin", "model.safetensors"},
}
"""What nobody needs to go on: DeepSpeed and FSDP have the weights a second time."""
ADAPTER = "base_model.model.layers.0.q_proj.lora_{}.weight"


def write_weights(file: Path, tensors: dict[str, list[float]]) -> None:
    header, data = {}, b""
    for name, values in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        place = [len(data), len(data) + len(packed)]
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": place}
        data += packed
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_torch(file: Path) -> None:
    """What torch.save writes is a zip file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("archive/data.pkl", b"x" * 200)


def write_state(folder: Path, step: int) -> None:
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 100}))


def plain(folder: Path, step: int = 5, processes: int = 1) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"batch": {"world_size": processes}}))
    write_weights(path / "model.safetensors", {"a": [1.0, 2.0], "b": [0.0]})
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", *names):
        write_torch(path / name)
    write_state(path, step)
    return path


def deepspeed(folder: Path, stage: int = 3) -> Path:
    path = plain(folder, processes=2)
    (path / "optimizer.pt").unlink()
    (path / "scheduler.pt").unlink()
    (path / "latest").write_text("global_step5")
    for rank in range(2):
        write_torch(path / f"global_step5/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            write_torch(path / f"global_step5/zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage < 3:
        write_torch(path / "global_step5/mp_rank_00_model_states.pt")
    return path


def fsdp(folder: Path) -> Path:
    path = plain(folder, processes=2)
    (path / "optimizer.pt").unlink()
    (path / "model.safetensors").unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (path / name).mkdir()
        (path / name / ".metadata").write_bytes(b"\x80\x04__0_0.distcp..__1_0.distcp--.")
        for rank in range(2):
            (path / name / f"__{rank}_0.distcp").write_bytes(b"tensors")
    return path


def fsdp_whole(folder: Path) -> Path:
    path = plain(folder, processes=2)
    (path / "optimizer.pt").unlink()
    for name in ("pytorch_model_fsdp.bin", "optimizer.bin"):
        write_torch(path / name)
    return path


@pytest.mark.parametrize(
    ("make", "kind", "world"),
    [
        (plain, "plain", 1),
        (lambda folder: plain(folder, processes=3), "plain", 3),
        (deepspeed, "deepspeed", 2),
        (lambda folder: deepspeed(folder, 2), "deepspeed", 2),
        (fsdp, "fsdp", 2),
        (fsdp_whole, "fsdp", 2),
    ],
    ids=["single", "ddp", "zero3", "zero2", "fsdp sharded", "fsdp whole"],
)
def test_whole_ones_and_every_file_of_them(tmp_path: Path, make: Callable[[Path], Path], kind: str, world: int) -> None:
    """Each is whole, and is not once any of its files that matter is gone, empty or cut."""
    path = make(tmp_path)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.step, checkpoint.kind, checkpoint.world, checkpoint.total) == (5, kind, world, 100)
    assert not checkpoint.weights_only
    for file in [each for each in path.rglob("*") if each.is_file()]:
        whole = file.read_bytes()
        for damaged in (b"", whole[: len(whole) * 2 // 3]):
            file.write_bytes(damaged)
            if file.suffix == ".distcp" and damaged:
                continue  # torch's own format: only its presence can be told
            with pytest.raises(Torn):
                open_checkpoint(path)
        if file.name not in _SPARE[kind]:
            file.unlink()
            with pytest.raises(Torn):
                open_checkpoint(path)
        file.write_bytes(whole)
    assert open_checkpoint(path).step == 5


def test_a_word_says_why(tmp_path: Path) -> None:
    path = plain(tmp_path)
    (path / "trainer_state.json").unlink()
    with pytest.raises(Torn, match=r"^has no trainer_state\.json, which is written last$"):
        open_checkpoint(path)
    write_state(path, 7)
    with pytest.raises(Torn, match="of step 7"):
        open_checkpoint(path)
    with pytest.raises(Torn, match=r"^is not there$"):
        open_checkpoint(tmp_path / "checkpoint-9")


def test_shards_that_the_index_names(tmp_path: Path) -> None:
    path = plain(tmp_path)
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(Torn, match=r"has no model-00002-of-00002\.safetensors"):
        open_checkpoint(path)
    write_weights(path / "model-00002-of-00002.safetensors", {"c": [1.0]})
    assert open_checkpoint(path).step == 5


def test_weights_without_an_optimizer(tmp_path: Path) -> None:
    path = plain(tmp_path)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).unlink()
    assert open_checkpoint(path).weights_only


def test_a_checkpoint_by_another_name(tmp_path: Path) -> None:
    assert open_checkpoint(plain(tmp_path).rename(tmp_path / "kept")).step == 5


def test_the_latest_first(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x", "earlier/checkpoint-99"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "checkpoint-11").write_text("no folder")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9"]


# --- weights that were just saved ------------------------------------------------------------------------------------


def test_weights_of_all_values(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", {"a": [0.0] * 3, "b": [0.0, 1.0]})
    check_weights(tmp_path, Expected(5), learned=True)
    with pytest.raises(Torn, match="holds 5 values, and the model has 6"):
        check_weights(tmp_path, Expected(6), learned=True)


def test_weights_of_zeros_and_of_nothing(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", {"a": [0.0] * 3})
    with pytest.raises(Torn, match="nothing but zeros"):
        check_weights(tmp_path, Expected(3), learned=True)
    write_weights(tmp_path / "model.safetensors", {"a": [1.0], "b": []})
    with pytest.raises(Torn, match="empty tensors: b is one of 1 of 2"):
        check_weights(tmp_path, Expected(1), learned=True)


def test_an_adapter(tmp_path: Path) -> None:
    """ZeRO-3 once wrote adapters without values (trl#4416)."""
    file, names = tmp_path / "adapter_model.safetensors", [ADAPTER.format(each) for each in "AB"]
    expected = Expected(tensors=dict.fromkeys(names, 2))
    write_weights(file, {names[0]: [1.0, 2.0], names[1]: [0.0, 0.5]})
    check_weights(tmp_path, expected, learned=True)
    write_weights(file, {names[0]: [1.0, 2.0], names[1]: [0.0, 0.0]})
    check_weights(tmp_path, expected, learned=False)
    with pytest.raises(Torn, match="lora_B are all 0"):
        check_weights(tmp_path, expected, learned=True)
    write_weights(file, {names[0]: [1.0, 2.0]})
    with pytest.raises(Torn, match=r"lacks 1 of 2 tensors of the adapter, .*lora_B"):
        check_weights(tmp_path, expected, learned=True)
    write_weights(file, {names[0]: [1.0, 2.0], names[1]: [1.0]})
    with pytest.raises(Torn, match="of 1 values, and the model's has 2"):
        check_weights(tmp_path, expected, learned=True)
