"""heartbeat.json and metrics.jsonl."""

import json
import math
import time

from ptcli.train.progress import SHORTEST_BEAT, Heartbeat, Metrics


def read_rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_heartbeat(folder):
    return json.loads((folder / "logs" / "heartbeat.json").read_text())


def test_a_heartbeat_has_every_field(tmp_path):
    before = time.time()
    Heartbeat(tmp_path).beat(phase="loading")
    beat = read_heartbeat(tmp_path)
    assert before <= beat.pop("time") <= time.time()
    assert beat == {"phase": "loading", "step": 0, "total": None, "tokens": None, "loss": None, "reward": None}


def test_a_heartbeat_remembers_what_was_logged(tmp_path):
    heartbeat = Heartbeat(tmp_path)
    heartbeat.note({"loss": 0.5, "reward": math.nan, "num_tokens": 12.0})
    heartbeat.beat(phase="training", step=3, total=9)
    beat = read_heartbeat(tmp_path)
    assert (beat["loss"], beat["reward"], beat["tokens"], beat["step"], beat["total"]) == (0.5, None, 12, 3, 9)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["heartbeat.json"]


def test_quick_steps_share_a_heartbeat_that_comes_even_if_no_step_follows(tmp_path):
    heartbeat = Heartbeat(tmp_path)
    heartbeat.beat(phase="training")
    for step in (1, 2, 3):
        heartbeat.tick(step)
    assert read_heartbeat(tmp_path)["step"] == 0
    time.sleep(3 * SHORTEST_BEAT)
    assert read_heartbeat(tmp_path)["step"] == 3
    heartbeat.tick(4)
    assert read_heartbeat(tmp_path)["step"] == 4


def test_a_late_heartbeat_does_not_undo_a_later_one(tmp_path):
    heartbeat = Heartbeat(tmp_path)
    heartbeat.beat(phase="training")
    heartbeat.tick(1)
    heartbeat.beat(phase="saving", step=2)
    time.sleep(SHORTEST_BEAT + 0.2)
    assert read_heartbeat(tmp_path)["phase"] == "saving"
    assert read_heartbeat(tmp_path)["step"] == 2


def test_a_line_can_be_read_as_soon_as_it_is_logged(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.open(0)
    metrics.log(1, {"loss": 1.5})
    assert read_rows(tmp_path) == [{"step": 1, "loss": 1.5}]


def test_a_step_has_one_line(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.open(0)
    metrics.log(1, {"loss": 1.123456789, "epoch": 0.33333333})
    metrics.log(2, {"loss": 0.5, "epoch": 0.66666666})
    metrics.log(2, {"eval_loss": 0.4, "epoch": 1})
    metrics.log(2, {"train_loss": 0.8})
    assert read_rows(tmp_path) == [
        {"step": 1, "loss": 1.123456789, "epoch": 0.33333333},
        {"step": 2, "loss": 0.5, "epoch": 1, "eval_loss": 0.4, "train_loss": 0.8},
    ]


def test_what_json_cannot_say_becomes_null_or_text(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.open(0)
    metrics.log(1, {"loss": math.nan, "max": math.inf, "list": [1, -math.inf], "path": tmp_path})
    assert read_rows(tmp_path) == [{"step": 1, "loss": None, "max": None, "list": [1, None], "path": str(tmp_path)}]


def test_a_resumed_run_keeps_what_came_before_its_checkpoint(tmp_path):
    first = Metrics(tmp_path)
    first.open(0)
    for step in range(1, 6):
        first.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    second = Metrics(tmp_path)
    second.open(3)
    second.log(4, {"loss": 40.0})
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_run_from_the_start_begins_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    Metrics(tmp_path).open(0)
    assert read_rows(tmp_path) == []


def test_a_step_costs_well_under_a_millisecond(tmp_path):
    heartbeat, metrics = Heartbeat(tmp_path), Metrics(tmp_path)
    metrics.open(0)
    logs = {f"metric/{number}": 0.5 for number in range(30)}
    start = time.process_time()
    for step in range(200):
        heartbeat.tick(step)
        metrics.log(step, logs)
    assert (time.process_time() - start) / 200 < 0.5e-3
