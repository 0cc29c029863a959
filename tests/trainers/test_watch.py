"""Which worker of a run is missing or stalled, judged from heartbeats."""

import io
import json
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console
from train_processes import start, wait_for_step

from codecvit.__main__ import main
from codecvit.trainers import heartbeat, watch, workers
from codecvit.trainers.workers import HEALTHY, Worker, healthy, judge


def beat(process=0, processes=4, **changes):
    values = {"beat": 7, "run": "r", "host": f"w-{process}", "pid": 1, "process": process}
    values |= {"processes": processes, "every": 5.0, "phase": "step", "phase_seconds": 0.2}
    values |= {"step": 100, "total_steps": 1000, "rate": 2.0, "since_step": 0.4, "problem": ""}
    return values | changes


def made(*changes, quiet=None):
    """One worker per change, last heard of 1 s before second 1000 but for those in `quiet`."""
    return {
        process: Worker(
            beat(process, len(changes), **change), 1000 - (quiet or {}).get(process, 1), alive=True
        )
        for process, change in enumerate(changes)
    }


def states(found, stall=45.0):
    return [row.state for row in judge(found, 1000.0, stall)]


def test_workers_that_step_are_fine():
    found = made({}, {"phase": "data"}, {"step": 101}, {"phase": "evaluation"})
    assert states(found) == ["ok"] * 4
    assert healthy(judge(found, 1000.0, 45.0))


def test_the_one_in_data_is_stalled_and_those_in_the_step_wait_for_it():
    step = {"since_step": 50.0, "phase_seconds": 50.0}
    found = made(step, {"phase": "data", **step}, step, step)
    assert states(found) == ["waits", "stalled", "waits", "waits"]
    text = judge(found, 1000.0, 45.0)[1].text
    assert text == "in data for 51 s at step 100, 3 other(s) wait for it"
    assert states(found, stall=60.0) == ["ok"] * 4


def test_the_one_behind_is_stalled_whatever_its_phase():
    """The others run ahead, as steps are sent to the devices before they are done."""
    ahead = {"step": 103, "since_step": 50.0, "phase_seconds": 50.0}
    for phase in heartbeat.RUNNING:
        found = made(ahead, {"phase": phase, "phase_seconds": 55.0, "since_step": 55.0}, ahead)
        assert states(found) == ["waits", "stalled", "waits"], phase


def test_a_worker_that_others_do_not_wait_for_yet_is_not_blamed():
    found = made({}, {"phase": "checkpoint", "phase_seconds": 600.0}, {})
    assert states(found) == ["ok"] * 3
    every = {"phase": "evaluation", "phase_seconds": 3600.0, "since_step": 3600.0}
    assert states(made(every, every)) == ["ok", "ok"]


def test_where_all_wait_alike_all_are_named():
    hung = {"since_step": 50.0, "phase_seconds": 49.0}
    found = made(hung, hung)
    assert states(found) == ["stalled", "stalled"]
    assert judge(found, 1000.0, 45.0)[0].text == "in step for 50 s at step 100, as all are"


def test_the_first_step_may_compile_but_the_first_batch_must_come():
    compiling = {"since_step": None, "phase_seconds": 900.0, "step": 0}
    assert states(made(compiling, compiling)) == ["ok", "ok"]
    assert states(made(compiling, {**compiling, "phase": "data"})) == ["ok", "stalled"]


def test_one_without_heartbeats_is_missing_and_the_others_are_not_blamed():
    late = {"since_step": 50.0, "phase_seconds": 50.0}
    found = made(late, late, {**late, "problem": "WARNING: hm"}, late, quiet={2: 21.0})
    assert states(found) == ["waits", "waits", "missing", "waits"]
    assert judge(found, 1000.0, 45.0)[2].text == (
        "no heartbeat for 21 s, last in step at step 100: killed, stopped or cut off; WARNING: hm"
    )
    assert states(made({}, {}, quiet={1: 19.0})) == ["ok", "ok"]


def test_one_that_never_wrote_is_missing_after_a_while():
    found = made({}, {})
    found[1] = Worker(None, 995.0)
    assert states(found) == ["ok", "ok"]
    found[1].changed = 970.0
    assert states(found) == ["ok", "missing"]
    assert judge(found, 1000.0, 45.0)[1].text == "no heartbeat for 30 s, and none before"


def test_ends_are_told_and_need_no_more_heartbeats():
    found = made({"phase": "done"}, {"phase": "stopped"}, quiet={0: 9e9, 1: 9e9})
    assert states(found) == ["done", "stopped"]
    assert healthy(judge(found, 1000.0, 45.0))
    found = made({"since_step": 80.0}, {"phase": "failed", "problem": "OSError: full"})
    assert states(found) == ["waits", "failed"]
    assert judge(found, 1000.0, 45.0)[1].text == "OSError: full"


def test_the_table_as_text():
    found = made(
        {},
        {"phase": "data", "step": 99, "phase_seconds": 52.0, "since_step": 52.2, "rate": 0.1234},
        {"since_step": None, "rate": None, "phase": "starting"},
    )
    rows = judge(found, 1000.0, 45.0)
    assert watch.summary("runs/L", found, rows) == (
        "runs/L: 3 workers, steps 99 to 100 of 1000, 2 steps/s, 2 ok, 1 stalled"
    )
    assert watch.plain(watch.cells(rows)) == (
        "process  host  step  steps/s  phase      heartbeat  state\n"
        "1        w-1   99    0.123    data 53 s  1 s ago    stalled  "
        "in data for 53 s at step 99, 2 other(s) wait for it\n"
        "0        w-0   100   2        step       1 s ago    ok\n"
        "2        w-2   100   -        starting   1 s ago    ok"
    )


def test_a_terminal_shows_the_same_table(tmp_path, monkeypatch):
    write(tmp_path, beat(0, 1, phase="failed", problem="OSError: [bold]full[/bold]"))
    shown = io.StringIO()
    monkeypatch.setattr(
        watch, "Console", lambda: Console(file=shown, force_terminal=True, width=160)
    )
    assert main(["watch", str(tmp_path)]) == 1
    text = shown.getvalue()
    assert all(word in text for word in ("1 worker,", "w-0", "failed", "[bold]full[/bold]"))


def test_a_long_table_is_cut_but_for_what_is_wrong():
    found = made(*[{}] * 200, quiet=dict.fromkeys(range(150, 160), 99.0))
    table = watch.cells(judge(found, 1000.0, 45.0))
    assert len(table) == 1 + watch.SHOWN + 1
    assert [row[6] for row in table[1:12]] == ["missing"] * 10 + ["ok"]
    assert table[-1][1] == "and 168 more"


def write(workdir, *beats):
    folder = Path(workdir) / heartbeat.FOLDER
    folder.mkdir(exist_ok=True)
    for values in beats:
        (folder / f"process-{values['process']:05d}.json").write_text(json.dumps(values))


def test_a_new_start_by_fewer_processes_forgets_the_others(tmp_path):
    write(tmp_path, *[beat(p, 3, step=9) for p in range(3)])
    looker = watch.Watch(str(tmp_path))
    assert len(looker.look()) == 3
    write(tmp_path, beat(0, 2, run="s", beat=1))
    rows = looker.look()
    assert [(row.process, row.phase) for row in rows] == [(0, "step"), (1, "-")]
    assert rows[1].text == "no heartbeat yet"
    (tmp_path / heartbeat.FOLDER / "process-00001.json").write_text('{"beat": ')  # half a file
    assert len(looker.look()) == 2


def test_once_says_by_its_status_whether_all_is_well(tmp_path, capsys):
    assert main(["watch", str(tmp_path), "--once"]) == 1
    assert "nothing has begun to train there" in capsys.readouterr().err
    done = [beat(p, 2, phase="done", step=1000) for p in range(2)]
    write(tmp_path, *done)
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert "2 workers, step 1000 of 1000, 2 done" in capsys.readouterr().out
    write(tmp_path, beat(1, 2, phase="failed", problem="OSError: disk full"))
    assert main(["watch", str(tmp_path), "--once"]) == 1
    assert "failed  OSError: disk full" in capsys.readouterr().out
    # Repeated, it ends with the run.
    assert main(["watch", str(tmp_path)]) == 1
    write(tmp_path, *done)
    assert main(["watch", str(tmp_path), "--every", "0.1"]) == 0


def test_once_waits_for_a_sign_of_life(tmp_path, capsys):
    with heartbeat.beating(str(tmp_path), "r", 0, 1, every=0.5):
        began = time.monotonic()
        assert main(["watch", str(tmp_path), "--once"]) == 0
        assert time.monotonic() - began >= 0.5
    assert "starting" in capsys.readouterr().out


def test_once_does_not_take_an_old_file_for_a_running_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.5)
    write(tmp_path, beat(0, 1, every=0.1))
    assert main(["watch", str(tmp_path), "--once"]) == 1
    assert "missing" in capsys.readouterr().out


def named(workdir, capsys):
    """The table of `watch --once`: state by process, and the whole text."""
    code = main(["watch", str(workdir), "--once"])
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()[2:]]
    known = {*HEALTHY, "waits", "stalled", "missing", "failed"}
    found = {int(line[0]): next(w for w in line[3:] if w in known) for line in lines}
    assert code == (0 if set(found.values()) <= set(HEALTHY) else 1)
    return found, text


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL])
def test_a_stopped_or_killed_process_is_named_within_a_minute(records, tmp_path, capsys, sent):
    processes = start(records, tmp_path, steps=1_000_000, save=1_000_000)
    try:
        wait_for_step(processes, tmp_path, 5)
        assert named(tmp_path, capsys)[0] == {0: "ok", 1: "ok"}
        processes[1].send_signal(sent)
        began = time.monotonic()
        found, text = named(tmp_path, capsys)
        while found[1] != "missing" and time.monotonic() - began < 60:
            time.sleep(1)
            found, text = named(tmp_path, capsys)
        assert time.monotonic() - began < 60, text
        # The first waits, or has noticed the loss and ended itself.
        assert found[1] == "missing" and found[0] in ("ok", "waits", "failed"), text
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_process_whose_data_stop_coming_is_named_within_a_minute(records, tmp_path, capsys):
    flags = dict.fromkeys(range(2), ["--config.sources.video.loader_workers=1"])
    processes = start(records, tmp_path, flags=flags, steps=1_000_000, save=1_000_000)
    try:
        wait_for_step(processes, tmp_path, 5)
        loaders = descendants(processes[1].pid)
        assert loaders
        for pid in loaders:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        found, text = named(tmp_path, capsys)
        while found[1] == "ok" and time.monotonic() - began < 90:
            time.sleep(1)
            found, text = named(tmp_path, capsys)
        assert found == {0: "waits", 1: "stalled"}, text
        assert "in data for" in text
        assert time.monotonic() - began < 60, text
    finally:
        for process in processes:
            for pid in descendants(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.communicate()


def descendants(pid):
    children = Path(f"/proc/{pid}/task").glob("*/children")
    direct = [int(child) for file in children for child in file.read_text().split()]
    return direct + [pid for child in direct for pid in descendants(child)]
