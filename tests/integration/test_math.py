"""The mathematics of the pinned stack: every identity holds, and every one fails when its formula is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ptcli.doctor.math import rewards
from ptcli.doctor.math.registry import IDENTITIES
from ptcli.methods import METHODS

BY_ID = {each.id: each for each in IDENTITIES}
REQUIRED = {"sft", "dpo", "grpo", "rloo", "kto", "orpo", "cpo", "reward", "prm"}
"""Methods whose loss has to be among the identities."""


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def doctor(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The real command in a home, a working directory and a temporary folder of its own."""
    places = {name: folder / name for name in ("home", "work", "scratch")}
    for place in places.values():
        place.mkdir(parents=True)
    own = {"HOME": str(places["home"]), "TMPDIR": str(places["scratch"])}
    command = [sys.executable, "-m", "ptcli", "doctor", "--math", *arguments]
    return subprocess.run(
        command, cwd=places["work"], env=os.environ | own | env, capture_output=True, text=True, timeout=500
    )


def test_every_identity_holds_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", ACCELERATE_MIXED_PRECISION="bf16", RANK="0", WORLD_SIZE="2")
    report = json.loads(done.stdout)
    assert [each for each in report["identities"] if not each["ok"]] == []
    assert done.returncode == 0
    assert [each["id"] for each in report["identities"]] == list(BY_ID)
    assert report["stack"]["trl"] == "1.12.0"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_identities_are_told_apart_and_name_their_methods() -> None:
    assert len(BY_ID) == len(IDENTITIES) > 50
    named = {method for each in IDENTITIES for method in each.methods}
    assert named <= set(METHODS)
    assert named >= REQUIRED
    assert all(each.statement and each.source for each in IDENTITIES)


@dataclass(frozen=True)
class Break:
    """A formula of the library, broken on purpose, and the identities that have to notice."""

    how: Callable[[pytest.MonkeyPatch], None]
    noticed_by: str


def replace(target: object, name: str, make: Callable) -> Callable[[pytest.MonkeyPatch], None]:
    """A break that puts `make(original)` in the place of an attribute."""
    return lambda patch: patch.setattr(target, name, make(getattr(target, name)))


def module(name: str) -> types.ModuleType:
    import importlib

    return importlib.import_module(name)


def lazily(name: str, attribute: str, make: Callable) -> Callable[[pytest.MonkeyPatch], None]:
    """The same for `module` or `module:Class`, imported when it is wanted."""

    def how(patch: pytest.MonkeyPatch) -> None:
        path, _, inner = name.partition(":")
        target = getattr(module(path), inner) if inner else module(path)
        replace(target, attribute, make)(patch)

    return how


def sharper(log_softmax: Callable) -> Callable:
    """Log-probabilities at another temperature."""
    return lambda logits, index: log_softmax(logits * 1.01, index)


def half_detached(log_probabilities: Callable) -> Callable:
    """The right values with half the gradient."""

    def broken(self, *arguments, **named):
        values, *rest = log_probabilities(self, *arguments, **named)
        return (values / 2 + values.detach() / 2, *rest)

    return broken


def population(spread: Callable) -> Callable:
    """The paper's standard deviation in the place of the library's."""

    def broken(values, dim=None, keepdim=False):
        count = (~values.isnan()).sum() if dim is None else (~values.isnan()).sum(dim, keepdim=keepdim)
        arguments = {} if dim is None else {"dim": dim, "keepdim": keepdim}
        return spread(values, **arguments) * ((count - 1) / count) ** 0.5

    return broken


def one_token_early(tokenize: Callable) -> Callable:
    """The label of a step before its separator and not at it."""

    def broken(*arguments, **named):
        row = tokenize(*arguments, **named)
        return row | {"labels": [*row["labels"][1:], -100]}

    return broken


def full_rank(delta: Callable) -> Callable:
    def broken(self, adapter):
        update = delta(self, adapter)
        return update + 1e-3 * torch.eye(*update.shape)

    return broken


def not_quite_zero(reset: Callable) -> Callable:
    def broken(self, name, how):
        reset(self, name, how)
        torch.nn.init.constant_(self.lora_B[name].weight, 1e-3)

    return broken


def weight_differentiated(outputs, labels, num_items_in_batch=None):
    """Dynamic fine-tuning without the `detach`."""
    log_p = outputs.logits[:, :-1].log_softmax(-1)
    kept = labels[:, 1:] != -100
    chosen = log_p[kept].gather(-1, labels[:, 1:][kept].unsqueeze(-1))
    return -(chosen.exp() * chosen).mean()


def not_updated(moments, rewards) -> None:
    moments.mean = 0.0


GENERATED = "trl.trainer.{}_trainer:{}Trainer"
PER_TOKEN = "_get_per_token_logps_and_entropies"

BREAKS = {
    "the default SFT loss with its logits scaled": Break(
        lazily(
            "trl.trainer.sft_trainer",
            "_chunked_cross_entropy_loss",
            lambda loss: lambda *a, **k: loss(*a, **(k | {"logit_scale": 1.01})),
        ),
        "sft-chunked sft-all-tokens sft-accumulation sft-wrong sft-gradient",
    ),
    "the plain SFT loss and that of steps with smoothed labels": Break(
        lazily(
            "transformers.loss.loss_utils",
            "fixed_cross_entropy",
            lambda loss: lambda logits, labels, *a, **k: torch.nn.functional.cross_entropy(
                logits, labels, ignore_index=-100, label_smoothing=0.1
            ),
        ),
        "sft-nll prm-steps prm-last-step",
    ),
    "log-softmax that does not add up to one": Break(
        replace(torch.nn.functional, "log_softmax", lambda f: lambda *a, **k: f(*a, **k) + 0.01), "sft-uniform"
    ),
    "a weight of DFT that is differentiated": Break(
        lazily("trl.trainer.sft_trainer", "dft_loss", lambda f: weight_differentiated), "sft-dft-gradient"
    ),
    "log-probabilities of DFT at another temperature": Break(
        lazily("trl.trainer.sft_trainer", "selective_log_softmax", sharper), "sft-dft"
    ),
    "log-probabilities of DPO at another temperature": Break(
        lazily("trl.trainer.dpo_trainer", "selective_log_softmax", sharper),
        "dpo-sigmoid dpo-precomputed dpo-ipo dpo-gradient dpo-falls dpo-wrong-way",
    ),
    "log-sigmoid that is moved": Break(
        replace(torch.nn.functional, "logsigmoid", lambda f: lambda x: f(x + 0.01)),
        "dpo-start orpo-loss cpo-loss cpo-simpo reward-bradley-terry reward-margin reward-centering",
    ),
    "log-sigmoid upside down": Break(
        replace(torch.nn.functional, "logsigmoid", lambda f: lambda x: f(-x)),
        "dpo-falls dpo-wrong-way reward-bradley-terry",
    ),
    "sigmoid that is moved": Break(
        replace(torch.nn.functional, "sigmoid", lambda f: lambda x: f(x + 0.01)), "kto-loss kto-clamp kto-start"
    ),
    "rewards of BCO that are not shifted by their mean": Break(
        lazily("trl.experimental.bco.bco_trainer:RunningMoments", "update", lambda f: not_updated),
        "bco-loss",
    ),
    "a divergence of KTO that is not clamped": Break(
        replace(torch.Tensor, "clamp", lambda f: lambda self, *a, **k: self), "kto-clamp"
    ),
    "labels of steps in the wrong place": Break(
        lazily("trl.experimental.prm:PRMTrainer", "tokenize_row", lambda f: staticmethod(one_token_early(f))),
        "prm-steps prm-last-step",
    ),
    "the standard deviation of a population": Break(
        lazily("trl.trainer.grpo_trainer", "nanstd", population),
        "grpo-advantages grpo-advantages-paper grpo-scale-batch",
    ),
    "a mean of the group that is moved": Break(
        replace(torch, "nanmean", lambda f: lambda *a, **k: f(*a, **k) + 0.01), "grpo-zero-mean grpo-scale-none"
    ),
    "ratios that are not clipped": Break(
        replace(torch, "clamp", lambda f: lambda ratio, *a, **k: ratio),
        "grpo-loss grpo-loss-grpo grpo-loss-bnpo grpo-loss-dr grpo-loss-gspo rloo-loss",
    ),
    "half of GRPO's gradient": Break(
        lazily(GENERATED.format("grpo", "GRPO"), PER_TOKEN, half_detached), "grpo-gradient grpo-accumulation"
    ),
    "half of RLOO's gradient": Break(
        lazily(GENERATED.format("rloo", "RLOO"), PER_TOKEN, half_detached), "rloo-gradient rloo-accumulation"
    ),
    "a baseline that is moved": Break(
        replace(torch, "nansum", lambda f: lambda *a, **k: f(*a, **k) + 0.01), "rloo-advantages rloo-penalty"
    ),
    "RLOO's standard deviation of a population": Break(
        lazily("trl.trainer.rloo_trainer", "nanstd", population), "rloo-normalised"
    ),
    "a divergence of distillation that is scaled": Break(
        replace(torch.nn.functional, "kl_div", lambda f: lambda *a, **k: f(*a, **k) * 1.01), "gkd-loss gkd-limits"
    ),
    "alpha/r in the place of alpha/sqrt r": Break(
        lambda patch: patch.setattr(module("peft.tuners.lora.layer"), "math", types.SimpleNamespace(sqrt=lambda r: r)),
        "lora-merge-rslora",
    ),
    "a merge of full rank": Break(
        lazily("peft.tuners.lora.layer:Linear", "get_delta_weight", full_rank), "lora-merge lora-rank"
    ),
    "an adapter that does not begin at zero": Break(
        lazily("peft.tuners.lora.layer:LoraLayer", "reset_lora_parameters", not_quite_zero), "lora-start"
    ),
    "a base that is trained with its adapter": Break(
        lazily(
            "peft.tuners.tuners_utils:BaseTuner", "_mark_only_adapters_as_trainable", lambda f: lambda self, model: None
        ),
        "lora-frozen",
    ),
    "a length reward that leans": Break(
        replace(rewards, "length_reward", lambda f: lambda texts, target, **k: f(texts, target=target - 0.4, **k)),
        "length-peak length-symmetry",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_formula_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a deviation that is too large, and not because something fell over."""
    broken = BREAKS[name]
    with monkeypatch.context() as patch:
        broken.how(patch)
        outcomes = [BY_ID[each].check() for each in broken.noticed_by.split()]
    assert [(each.id, each.deviation, each.error) for each in outcomes if each.ok or each.error] == []


def test_every_identity_can_fail() -> None:
    noticed = {each for broken in BREAKS.values() for each in broken.noticed_by.split()}
    assert noticed == set(BY_ID)


def test_an_identity_of_an_installation_that_lacks_a_trainer_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module("trl.experimental.prm"), "PRMTrainer")
    outcome = BY_ID["prm-steps"].check()
    assert not outcome.ok
    assert "PRMTrainer" in outcome.error
    assert BY_ID["reward-bradley-terry"].check().ok


SITECUSTOMIZE = """
import sys

if "ptcli.doctor.math" in sys.orig_argv:
    import torch

    log_sigmoid = torch.nn.functional.logsigmoid
    torch.nn.functional.logsigmoid = lambda x: log_sigmoid(-x)
"""


def test_the_command_fails_and_names_what_is_broken(tmp_path: Path) -> None:
    """The installation is changed from outside, as an upgrade would."""
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    done = doctor(tmp_path / "run", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "FAILED dpo-sigmoid: off by" in done.stdout
    assert "FAILED reward-bradley-terry: off by" in done.stdout
    assert "FAILED sft-chunked" not in done.stdout
    assert "identities do not hold" in done.stdout.splitlines()[-1]
    assert "checking dpo" in done.stderr
