"""The morning report as people ask for it, and as training leaves it."""

import shutil
import subprocess
import sys
import time

import pytest

from discord_lora.analysis.morning.history import HISTORY_FILE, append_event, read_events
from run_scripts import ROOT, run_here, tiny_model_folder, write_chat

SCRIPT = "scripts/morning_report.py"
TRAIN = "training/train_lora.py"


def report(monkeypatch, capsys, *words):
    """Exit code, what was printed, and the errors."""
    code = run_here(monkeypatch, SCRIPT, *words)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return code, captured.out, captured.err


def a_run(logs, name, **last):
    folder = logs / name
    folder.mkdir(parents=True)
    append_event(folder, "plan", run=name, steps=9, command="python training/train_lora.py")
    append_event(folder, "start", step=0, **last)
    append_event(folder, "step", step=4, loss=2.5)
    return folder


def test_no_run_is_said_in_one_sentence(tmp_path, monkeypatch, capsys):
    code, out, error = report(monkeypatch, capsys, "--logs-dir", tmp_path / "logs")
    assert (code, out) == (2, "")
    assert error.count("\n") <= 2 and "There is no run" in error and "train_lora.py" in error


def test_the_newest_run_is_shown_and_its_page_written(tmp_path, monkeypatch, capsys):
    a_run(tmp_path, "older")
    time.sleep(0.02)
    folder = a_run(tmp_path, "newer")
    code, out, _ = report(monkeypatch, capsys, "--logs-dir", tmp_path)
    assert code == 0
    assert "newer" in out and "Running: step 4 of 9" in out
    assert b"Running: step 4 of 9" in (folder / "report.html").read_bytes()
    assert not (tmp_path / "older" / "report.html").exists()


def test_a_run_is_found_by_name_by_folder_and_by_file(tmp_path, monkeypatch, capsys):
    folder = a_run(tmp_path / "logs", "ada")
    a_run(tmp_path / "logs", "newer")
    for name in ("ada", folder, folder / HISTORY_FILE):
        code, out, _ = report(monkeypatch, capsys, "--logs-dir", tmp_path / "logs", name)
        assert code == 0 and "-- ada --" in out
    code, _, error = report(monkeypatch, capsys, "--logs-dir", tmp_path / "logs", "eva")
    assert code == 2 and "no run eva" in error and "newer, ada" in error
    code, _, error = report(monkeypatch, capsys, "--logs-dir", tmp_path, tmp_path / "logs")
    assert code == 2 and "no history" in error


def test_the_page_can_go_elsewhere_but_not_over_the_history(tmp_path, monkeypatch, capsys):
    folder = a_run(tmp_path, "ada")
    words = ["--logs-dir", tmp_path, "--html"]
    assert report(monkeypatch, capsys, *words, tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").is_file() and not (folder / "report.html").exists()
    code, _, error = report(monkeypatch, capsys, *words, folder / HISTORY_FILE)
    assert code == 2 and "--html" in error
    assert len(read_events(folder)) == 3


def test_names_that_a_terminal_would_obey_are_harmless(tmp_path, monkeypatch, capsys):
    folder = a_run(tmp_path, "ada")
    evil = "\x1b[31m\u202e[bold]x[/nonsense]"
    append_event(folder, "plan", **dict.fromkeys(("run", "base_model", "voice", "label"), evil))
    append_event(folder, "incident", step=1, what=evil, sentence=evil)
    append_event(folder, "answers", step=0, answers=[dict.fromkeys(("prompt", "real"), evil)])
    append_event(folder, "end", outcome="failed", sentence=evil, next_command=evil)
    _, out, _ = report(monkeypatch, capsys, "--logs-dir", tmp_path)
    assert "[bold]x[/nonsense]" in out
    assert "\x1b" not in out and "\u202e" not in out


def test_a_run_whose_process_was_killed_is_known_at_once(tmp_path, monkeypatch, capsys):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from discord_lora.analysis.morning.history import append_event\n"
        "folder = Path(sys.argv[1])\n"
        "append_event(folder, 'plan', run='ada', steps=9, command='python train --all')\n"
        "append_event(folder, 'start', step=0)\n"
        "append_event(folder, 'step', step=4, loss=2.5)\n"
        "print('written', flush=True); time.sleep(100)"
    )
    folder = tmp_path / "ada"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", program, folder], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        _, living, _ = report(monkeypatch, capsys, "--logs-dir", tmp_path)
        process.kill()
    _, killed, _ = report(monkeypatch, capsys, "--logs-dir", tmp_path)
    assert "Running: step 4 of 9" in living and "Go on with" not in living
    assert "No sign of life since" in killed and "step 4 of 9" in killed
    assert "Go on with:\n  python train --all\n" in killed


def test_help_loads_no_torch():
    program = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(ROOT / SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: print(*sorted({'torch', 'polars', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert b"the newest run" in done.stdout
    assert done.stdout.splitlines()[-1] == b""


# What training leaves ----------------------------------------------------------------------------


def arguments(tmp_path, **settings):
    chosen = {
        "training_data_path": tmp_path / "chat.jsonl",
        "base_model": tmp_path / "tiny",
        "quantization": "none",
        "persona": "ada",
        "output_dir": tmp_path / "adapters",
        "logs_dir": tmp_path / "logs",
        "max_steps": 4,
        "gradient_accumulation_steps": 4,
        "max_seq_length": 256,
        "context_tokens": 16,
        "validation_fraction": 0.2,
        "learning_rate": "1e-2",
        "log_every_steps": 1,
        "save_every_steps": 2,
        **settings,
    }
    return [word for key, value in chosen.items() for word in ("--" + key.replace("_", "-"), value)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_sample_answers_change_no_bit_of_the_adapter(tmp_path, monkeypatch, capsys, dropout):
    write_chat(tmp_path / "chat.jsonl")
    tiny_model_folder(tmp_path)
    ends = {}
    for asked in (0, 3):
        words = arguments(tmp_path, sample_answers=asked, lora_dropout=dropout)
        assert run_here(monkeypatch, TRAIN, *words) == 0
        run = tmp_path / "adapters" / "ada-tiny"
        ends[asked] = (run / "adapter_model.safetensors").read_bytes()
        logs = tmp_path / "logs" / "ada-tiny"
        events = [it for it in read_events(logs) if it["kind"] == "answers"]
        assert [it["step"] for it in events] == ([0, 2, 4] if asked else [])
        shutil.rmtree(run)
    assert ends[0] == ends[3]
    asked = [[(it["prompt"], it["real"]) for it in event["answers"]] for event in events]
    assert len(asked[0]) == 3 and asked[0] == asked[1] == asked[2]
    assert "no sample answers" not in capsys.readouterr().out


def test_training_ends_with_the_report(tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "chat.jsonl")
    tiny_model_folder(tmp_path)
    assert run_here(monkeypatch, TRAIN, *arguments(tmp_path)) == 0
    page = tmp_path / "logs" / "ada-tiny" / "report.html"
    assert "report.html" in capsys.readouterr().out.replace("\n", "")
    html = page.read_text(encoding="utf-8")
    assert "The same questions at each checkpoint" in html
    assert "before training" in html


def test_a_tokenizer_that_cannot_be_loaded_costs_the_answers_only(tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "chat.jsonl")
    tiny_model_folder(tmp_path)

    def fail(*_):
        raise ValueError("no room")

    monkeypatch.setattr("discord_lora.inference.sample_answers.PromptFormat", fail)
    assert run_here(monkeypatch, TRAIN, *arguments(tmp_path)) == 0
    assert (tmp_path / "adapters" / "ada-tiny" / "run.json").is_file()
    assert "no sample answers after step 2: ValueError: no room" in capsys.readouterr().out
