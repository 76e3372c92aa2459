"""The pair recipes/pairs/reward-then-ppo: a reward model is trained, and PPO trains a policy with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ptcli.methods import METHODS
from tests.smoke_runs import assert_finished, assert_learned, assert_usable, metrics_of

pytestmark = pytest.mark.long

PAIR = Path(__file__).parents[2] / "recipes/pairs/reward-then-ppo"


def test_reward_then_ppo(tmp_path: Path, ptcli_process: Callable) -> None:
    reward, policy = tmp_path / "reward", tmp_path / "ppo"
    trained = ptcli_process("train", PAIR / "reward.yaml", "--smoke", f"output_dir={reward}")
    assert trained.code == 0, trained.err
    assert_finished(reward)
    assert_usable(reward, METHODS["reward"].head)

    used = ptcli_process(
        "train", PAIR / "ppo.yaml", "--smoke", f"reward_model.path={reward}", f"output_dir={policy}", timeout=600
    )
    assert used.code == 0, used.err
    resolved = yaml.safe_load((policy / "recipe.resolved.yaml").read_text())
    assert (resolved["reward_model"]["path"], resolved["value_model"]["path"]) == (str(reward), str(reward))
    assert_finished(policy)
    assert_learned(policy, METHODS["ppo"].head)
    assert_usable(policy, METHODS["ppo"].head)
    scores = [row["objective/scores"] for row in metrics_of(policy) if "objective/scores" in row]
    assert scores
    assert any(score != -1.0 for score in scores), "only the penalty for answers that do not end: no model scored"
