"""What `ptcli merge` costs beside `cp` and PEFT, on a generated Llama: ratios and peak memory, in the same rounds.

$BENCH_ROUNDS sets the rounds (5), $BENCH_MERGE_GB the size of the model (3).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from ptcli.merge.headers import build_header
from ptcli.merge.model import Output

NAME = "merge"
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
GB = float(os.environ.get("BENCH_MERGE_GB", "3"))
HIDDEN, INNER, HEADS, KV_HEADS, VOCAB, RANK = 2048, 8192, 16, 4, 32000, 16
SHARD = 500_000_000
LAYER_BYTES = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN * KV_HEADS // HEADS + 3 * HIDDEN * INNER)
LARGEST = VOCAB * HIDDEN * 2
"""Bytes of the largest tensor."""
LINEAR: Mapping[str, tuple[int, int]] = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
"""Module -> shape of its weight."""
MIB = 1 << 20
SAMPLE_EVERY = 0.02
"""Seconds."""
BY_PEFT = """
import sys, torch, transformers, peft
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
peft.PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""
LIBRARIES = "from ptcli.merge.verify_child import import_libraries; import_libraries()"
"""What the process that verifies imports."""


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    peak: int
    """Bytes of resident memory."""


def measure(argv: Sequence[str]) -> Cost:
    """Wall time and peak memory of a command and its children, which are added up."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with sampled_memory(process.pid) as samples:
        said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(argv)}\n{said[-4000:]}")
    return Cost(time.perf_counter() - start, max(*samples, usage.ru_maxrss * 1024))


@contextmanager
def sampled_memory(pid: int) -> Iterator[list[int]]:
    """Resident memory of a process and its children now and then, libraries that they share counted for each."""
    samples, ended = [0, 0], Event()

    def look() -> None:
        while not ended.wait(SAMPLE_EVERY):
            samples.append(_resident(pid))

    thread = Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0  # it has just ended
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_resident(int(each)) for each in children)


# --- the model -------------------------------------------------------------------------------------------------------


def make_model(folder: Path, gigabytes: float) -> Path:
    """A Llama of about so many GB in bf16, cut into files of 500 MB."""
    folder.mkdir()
    layers = max(1, round((gigabytes * 1e9 - 2 * LARGEST) / LAYER_BYTES))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB,
        "tie_word_embeddings": False, "dtype": "bfloat16", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    files: list[list[Output]] = [[]]
    for name, shape in _shapes(layers):
        output = Output(name, "BF16", shape, None)
        if files[-1] and sum(each.nbytes for each in files[-1]) + output.nbytes > SHARD:
            files.append([])
        files[-1].append(output)
    places = {}
    for number, outputs in enumerate(files, 1):
        path = folder / f"model-{number:05}-of-{len(files):05}.safetensors"
        write_random(path, outputs, scale=0.02)
        places |= {each.name: path.name for each in outputs}
    total = sum(each.nbytes for outputs in files for each in outputs)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for layer in range(layers):
        for module, shape in LINEAR.items():
            yield f"model.layers.{layer}.{module}.weight", shape
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def make_adapter(base: Path, folder: Path) -> Path:
    """An adapter of all linear layers, r = 16, in float32."""
    folder.mkdir()
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
        "lora_alpha": 2 * RANK, "target_modules": [name.rpartition(".")[2] for name in LINEAR],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    outputs = [
        Output(f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight", "F32", pair, None)
        for layer in range(layers)
        for module, (rows, columns) in LINEAR.items()
        for side, pair in (("A", (RANK, columns)), ("B", (rows, RANK)))
    ]
    write_random(folder / "adapter_model.safetensors", outputs, scale=0.01)
    return folder


def write_random(path: Path, outputs: Sequence[Output], scale: float) -> None:
    """Tensors of normal values of that scale. One block of them again and again: only their bits matter here."""
    import torch

    dtype = torch.bfloat16 if outputs[0].dtype == "BF16" else torch.float32
    values = (torch.randn(8 << 20, generator=torch.Generator().manual_seed(1)) * scale).to(dtype)
    block = values.view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(build_header(outputs, {"format": "pt"}))
        for output in outputs:
            left = output.nbytes
            while left:
                left -= file.write(block[: min(left, len(block))])


# --- the comparison --------------------------------------------------------------------------------------------------


class Bench:
    """A model, its adapter, and the ways of getting from one to the other."""

    def __init__(self, folder: Path, gigabytes: float):
        self.folder, self.out = folder, folder / "out"
        self.base, self.adapter = folder / "base", folder / "adapter"
        # By a child: a process inherits the peak of the one that starts it, and this makes ours as large as torch.
        subprocess.run([sys.executable, "-m", __spec__.name, "make", str(folder), str(gigabytes)], check=True)

    def copy(self) -> Cost:
        return self._with_sync(["cp", "-r", str(self.base), str(self.out)])

    def ours(self, *options: str) -> Cost:
        words = ["merge", str(self.adapter), "--out", str(self.out), *options]
        return self._with_sync([sys.executable, "-m", "ptcli", *words])

    def peft(self) -> Cost:
        return self._with_sync([sys.executable, "-c", BY_PEFT, str(self.base), str(self.adapter), str(self.out)])

    def _with_sync(self, argv: list[str]) -> Cost:
        """The command and a `sync -f` of what it wrote; what was there before is gone and on the disk."""
        shutil.rmtree(self.out, ignore_errors=True)
        subprocess.run(["sync", "-f", str(self.folder)], check=True)
        done = measure(argv)
        synced = measure(["sync", "-f", str(self.out)])
        return Cost(done.seconds + synced.seconds, done.peak)


@dataclass(frozen=True)
class Line:
    """One figure and what it must not pass."""

    name: str
    value: float
    limit: float
    at_least: bool = False
    unit: str = ""

    @property
    def kept(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        word = "at least" if self.at_least else "at most"
        figure = f"{self.value:.2f}{self.unit}"
        return f"{self.name:60} {figure:>12}  ({word} {self.limit:g}{self.unit})  {'ok' if self.kept else 'BROKEN'}"


def compare(place: Path, gigabytes: float, rounds: int) -> Iterator[Line]:
    """All figures of a model of that size, from interleaved rounds."""
    bench = Bench(place, gigabytes)
    bench.copy()  # the source is in the page cache from here on
    done = [(bench.copy(), bench.ours("--no-verify"), bench.ours(), bench.peft()) for _ in range(rounds)]
    for copy, ours, verified, peft in done:
        seconds = "  ".join(f"{each.seconds:7.2f}" for each in (copy, ours, verified, peft))
        print(f"  seconds: cp, merge --no-verify, merge, PEFT  {seconds}", flush=True)
    yield Line(
        "merge --no-verify / cp, both synced", _median(ours.seconds / copy.seconds for copy, ours, *_ in done), 2.5
    )
    yield Line("PEFT / merge --no-verify", _median(peft.seconds / ours.seconds for _, ours, _, peft in done), 5, True)
    extra = _median((verified.seconds - ours.seconds) / copy.seconds for copy, ours, verified, _ in done)
    yield Line("verification / cp", extra, 2)
    peak = max(ours.peak for _, ours, *_ in done)
    yield Line("peak memory, merge --no-verify", peak / MIB, 400, unit=" MiB")
    # The process that verifies takes its libraries, of whatever model, and the rest for this one: the limit is on that.
    libraries = measure([sys.executable, "-c", LIBRARIES]).peak
    whole = max(verified.peak for *_, verified, _ in done)
    yield Line("verification's memory beyond its libraries / largest tensor", (whole - peak - libraries) / LARGEST, 2)
    print(
        f"  peaks: merge {peak / MIB:.0f} MiB, verified {whole / MIB:.0f} MiB (both processes, of which the libraries "
        f"of the second {libraries / MIB:.0f} MiB), PEFT {max(each.peak for *_, each in done) / MIB:.0f} MiB",
        flush=True,
    )


def growth(place: Path) -> Line:
    """Peak memory of 8 GB of model over that of 1 GB."""
    peaks = []
    for gigabytes in (1.0, 8.0):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            peaks.append(Bench(Path(folder), gigabytes).ours("--no-verify").peak)
    return Line("peak memory, 8 GB of model / 1 GB", peaks[1] / peaks[0], 1.1)


def _median(values: Iterator[float]) -> float:
    return statistics.median(values)


def make(folder: str, gigabytes: str) -> None:
    make_adapter(make_model(Path(folder, "base"), float(gigabytes)), Path(folder, "adapter"))


def main() -> int:
    """Print every figure; 1 when a limit is broken."""
    with tempfile.TemporaryDirectory(prefix="ptcli-bench-") as folder:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            lines = list(compare(Path(place), GB, ROUNDS))
        if GB >= 1:
            lines.append(growth(Path(folder)))
    print("\n".join(map(str, lines)))
    return 0 if all(line.kept for line in lines) else 1


if __name__ == "__main__":
    sys.exit(make(*sys.argv[2:]) if sys.argv[1:2] == ["make"] else main())
