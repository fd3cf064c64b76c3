"""Runs that are stopped, killed, hung up and started twice: real processes, a tiny model."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from discord_lora.analysis.morning.history import read_events
from discord_lora.finetuning.manifest import damage
from run_scripts import ROOT, as_in_a_terminal, start, tiny_model_folder, wait_for_steps, write_chat
from test_train_lora import SCRIPT, arguments, finish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform == "win32", reason="sends signals the POSIX way"),
]

LAUNCHED = "tests/launched.py"
SECRET = "hf_never_to_be_seen"


class Run:
    """A training of the tiny model, long enough to be disturbed."""

    def __init__(self, tmp_path):
        write_chat(tmp_path / "chat.jsonl")
        self.settings = {
            "base_model": tiny_model_folder(tmp_path),
            "quantization": "none",
            "epochs": 1000,
            "max_steps": 4000,
            "save_every_steps": 10,
        }
        self.tmp_path = tmp_path
        self.folder = tmp_path / "adapters" / "server-tiny"
        self.logs = tmp_path / "logs" / "server-tiny"

    def words(self, *more, **settings):
        return [*arguments(self.tmp_path, **{**self.settings, **settings}), *more]

    def start(self, *more, mode=(), **settings):
        scripts = [LAUNCHED, *mode, SCRIPT] if mode else [SCRIPT]
        return start(*scripts, *self.words(*more, **settings))

    def events(self, kind):
        return [event for event in read_events(self.logs) if event["kind"] == kind]

    def text(self):
        return (self.tmp_path / "logs" / "training.log").read_text(encoding="utf-8")

    def checkpoints(self):
        return sorted(self.folder.glob("checkpoints/step-????????"))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def printed_command(error):
    """The line after `Run the same command again`."""
    lines = error.splitlines()
    return lines[next(n for n, line in enumerate(lines) if "Run the same command" in line) + 1]


def test_a_file_named_stop_saves_and_the_printed_command_goes_on(run):
    run.folder.mkdir(parents=True)
    (run.folder / "STOP").touch()
    process = run.start("--hf-token", SECRET, persona="", system_prompt="it's $5 & more")
    wait_for_steps(process, run.logs, 3)
    (run.folder / "STOP").touch()
    code, out, error = finish(process)
    assert code == 130, out + error
    assert "STOP was there before the start and is removed" in out
    assert "asked to stop (the file" in run.text()
    assert not (run.folder / "STOP").exists()
    end = run.events("end")[-1]
    assert (end["outcome"], end["sentence"]) == ("stopped", "Everything is saved.")
    saved = run.checkpoints()[-1]
    assert not damage(saved) and saved.name == f"step-{end['step']:08d}"
    assert SECRET not in error + run.text() + end["next_command"]

    line = printed_command(error)
    assert line.strip() == end["next_command"]
    words = shlex.split(line)
    assert words[words.index("--system-prompt") + 1] == "it's $5 & more"
    refused = [words[0], *words[1:], "--learning-rate", "5e-4", "--lora-r", "8"]
    answer = subprocess.run(refused, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "LEARNING_RATE was 0.001, is 0.0005" in answer.stderr
    assert "LORA_R was 16, is 8" in answer.stderr
    assert SECRET not in answer.stderr and "HF_TOKEN" not in answer.stderr

    # As it is printed, by a shell; harmless settings may change, and a token was no part of it.
    harmless = "--hf-token another --log-every-steps 5 --save-every-steps 7"
    process = subprocess.Popen(
        f"exec {line} {harmless}",
        shell=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for_steps(process, run.logs, 2, kind="start")
    wait_for_steps(process, run.logs, len(run.events("step")) + 2)
    process.send_signal(signal.SIGTERM)
    code, out, error = finish(process)
    assert code == 130, out + error
    assert f"going on after step {end['step']:,}" in out
    assert "asked to stop (SIGTERM)" in run.text()


def test_two_trainings_on_one_folder_the_second_refuses_until_the_first_is_gone(run):
    first = run.start()
    wait_for_steps(first, run.logs, 12)
    for more in ([], ["--fresh"]):
        code, out, error = finish(run.start(*more))
        assert code == 2, out + error
        assert f"{run.folder} is in use by another training" in error
        assert "Traceback" not in error
    assert first.poll() is None
    assert run.checkpoints() and (run.folder / "identity.json").is_file()
    first.kill()
    first.communicate()

    second = run.start()
    wait_for_steps(second, run.logs, 2, kind="start")
    assert len(run.events("start")) == 2, "the system let go of the lock of a killed process"
    second.send_signal(signal.SIGTERM)
    code, out, error = finish(second)
    assert code == 130, out + error
    assert "going on after step" in out


def test_a_second_ctrl_c_in_the_middle_of_a_save_leaves_at_once(run):
    process = run.start(mode=["slow-disk"])
    while b"writing" not in process.stdout.readline():
        assert process.poll() is None
    before = run.checkpoints()
    assert list(run.folder.glob("checkpoints/*.partial")), "in the middle of the save"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first one waits for the save"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, error = finish(process)
    assert code == 130, out + error
    assert time.monotonic() - began < 10
    assert "Traceback" not in error
    assert run.checkpoints() == before and not damage(before[-1])
    assert "left at once" in run.events("end")[-1]["sentence"]

    process = run.start()
    wait_for_steps(process, run.logs, 2, kind="start")
    process.send_signal(signal.SIGINT)
    code, out, error = finish(process)
    assert code == 130, out + error
    step = int(before[-1].name[-8:])
    assert (f"going on after step {step:,}" if step else "on CPU: starting") in out


def test_a_terminal_that_is_closed_costs_nothing(run):
    """As closing the window of an SSH session does: SIGHUP, and nowhere to write to."""
    pty = pytest.importorskip("pty")
    as_in_a_terminal(signal.SIGHUP)
    child, window = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        words = [sys.executable, SCRIPT, *map(str, run.words())]
        os.execv(sys.executable, words)
    steps, deadline = 0, time.monotonic() + 200
    while steps < 5 and time.monotonic() < deadline:
        os.read(window, 65536)  # a terminal that nobody reads would hold the program
        steps = len(run.events("step"))
    os.close(window)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    end = run.events("end")[-1]
    assert (end["outcome"], end["sentence"]) == ("stopped", "Everything is saved.")
    assert not damage(run.checkpoints()[-1])
    assert run.checkpoints()[-1].name == f"step-{end['step']:08d}"
    assert "SIGHUP" in run.text() and "Traceback" not in run.text()


def test_a_step_that_hangs_is_reported_and_the_result_is_the_same(run):
    for mode in ([], ["hangs"]):
        folder = {"output_dir": run.tmp_path / f"adapters{len(mode)}"}
        code, out, error = finish(
            run.start(
                mode=mode,
                max_steps=5,
                sample_answers=0,
                logs_dir=run.tmp_path / f"logs{len(mode)}",
                **folder,
            )
        )
        assert code == 0, out + error
    incidents = [it for it in read_events(run.tmp_path / "logs1" / "server-tiny") if "what" in it]
    # With one second as the limit, a busy machine may be slow elsewhere as well.
    hung = [it["sentence"] for it in incidents if it["what"] == "hung"]
    assert any(sentence.startswith("step 3 has been running for") for sentence in hung)
    assert "went_on" in [it["what"] for it in incidents]
    text = (run.tmp_path / "logs1" / "training.log").read_text(encoding="utf-8")
    assert "stand_still" in text, "the log holds where the program stands"
    adapters = [
        Path(run.tmp_path / name / "server-tiny" / "adapter_model.safetensors").read_bytes()
        for name in ("adapters0", "adapters1")
    ]
    assert adapters[0] == adapters[1]
