"""Run the entry scripts as people do: in this process, which is quick, or in one of their own."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

from discord_lora.adapter_folder import WEIGHTS_FILE, RunInfo
from discord_lora.analysis.morning.history import read_events
from discord_lora.messages.training_data import write_line
from fakes import chatter, make_model, make_tokenizer

ROOT = Path(__file__).resolve().parent.parent


def run_here(monkeypatch, script, *arguments):
    """Exit code of a script that runs in this process, its imports already paid for."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as leaving:
        return leaving.code
    raise AssertionError("the script did not leave through run_script")


def as_in_a_terminal(number):
    """Not as under nohup, which the tests may run under and which is respected."""
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    return signal.getsignal(number)


def start(script, *arguments, **environment):
    """A script in a process of its own, in the repository's folder."""
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_steps(process, logs, count, *, kind="step"):
    """Until the history in `logs` has so many of them, or the process has ended."""
    while process.poll() is None:
        if sum(event["kind"] == kind for event in read_events(logs)) >= count:
            return
        time.sleep(0.02)


def tiny_model_folder(tmp_path, model=None):
    """A base model that loads in milliseconds."""
    folder = tmp_path / "tiny"
    (model or make_model()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def adapter_without_weights(tmp_path, voice):
    """It only says whose voice it is, and how to render: another server has the weights."""
    folder = tmp_path / "ada"
    folder.mkdir()
    (folder / WEIGHTS_FILE).touch()
    base = str(tiny_model_folder(tmp_path))
    RunInfo(base, "none", voice, {"max_seq_length": 300}, "", {}).write(folder)
    return folder


def write_chat(path, count=80, **fields):
    """A training_data.jsonl of invented chat."""
    with path.open("wb") as stream:
        for message in chatter(count, **fields):
            write_line(stream, message)
    return path
