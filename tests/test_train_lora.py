"""The training script as people run it."""

import json
import os
import runpy
import shlex
import shutil
import signal
import sys
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file

from discord_lora.analysis.morning.history import read_events
from discord_lora.console import UserError, make_console
from discord_lora.finetuning import keeping, measured, session
from discord_lora.finetuning.training_model import TrainingModel
from fake_hub import NAME, FakeHub
from run_scripts import ROOT, run_here, start, tiny_model_folder, wait_for_steps, write_chat

SCRIPT = "training/train_lora.py"


def arguments(tmp_path, **settings):
    chosen = {
        "training_data_path": tmp_path / "chat.jsonl",
        "base_model": "sample",
        "output_dir": tmp_path / "adapters",
        "logs_dir": tmp_path / "logs",
        "max_steps": 4,
        "gradient_accumulation_steps": 4,
        "max_seq_length": 256,
        "context_tokens": 16,
        "max_validation_messages": 6,
        "learning_rate": "1e-3",
        "log_every_steps": 1,
        "save_every_steps": 1000,
        **settings,
    }
    return [word for key, value in chosen.items() for word in ("--" + key.replace("_", "-"), value)]


def error_of(capsys):
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def test_a_missing_data_file_is_said_with_the_next_step(tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, SCRIPT, *arguments(tmp_path)) == 2
    assert "prepare_training_data.py" in error_of(capsys)


def test_an_empty_data_file_is_said_with_the_next_step(tmp_path, monkeypatch, capsys):
    (tmp_path / "chat.jsonl").write_text("")
    assert run_here(monkeypatch, SCRIPT, *arguments(tmp_path)) == 2
    assert "prepare_training_data.py" in error_of(capsys)


def test_an_unknown_persona_is_said_with_the_nearest(tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "chat.jsonl")
    model = tiny_model_folder(tmp_path)
    words = arguments(tmp_path, base_model=model, persona="adda")
    assert run_here(monkeypatch, SCRIPT, *words) == 2
    assert "the nearest are ada" in error_of(capsys)


@pytest.mark.parametrize("name", ["./no/such/folder", "C:\\models\\none", "nobody/nothing-7B"])
def test_a_model_that_is_not_there_is_said_with_the_next_step(tmp_path, monkeypatch, capsys, name):
    write_chat(tmp_path / "chat.jsonl")
    assert run_here(monkeypatch, SCRIPT, *arguments(tmp_path, base_model=name)) == 2
    error = error_of(capsys)
    assert "BASE_MODEL" in error and "sample" in error


def test_a_folder_without_a_model_is_said_with_the_next_step(tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "chat.jsonl")
    assert run_here(monkeypatch, SCRIPT, *arguments(tmp_path, base_model=tmp_path)) == 2
    assert "does not hold a model" in error_of(capsys)


def test_a_model_larger_than_memory_is_refused_before_it_is_loaded(tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "chat.jsonl")
    model = tiny_model_folder(tmp_path)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_size": 32_768, "intermediate_size": 131_072, "num_hidden_layers": 400}
    (model / "config.json").write_text(json.dumps(config))
    assert run_here(monkeypatch, SCRIPT, *arguments(tmp_path, base_model=model)) == 2
    error = error_of(capsys)
    assert "GB free" in error and "smaller BASE_MODEL" in error


def test_an_output_that_cannot_be_written_is_said_with_the_next_step(tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "chat.jsonl")
    (tmp_path / "adapters").write_text("a file where a folder is due")
    words = arguments(tmp_path, base_model=tiny_model_folder(tmp_path))
    assert run_here(monkeypatch, SCRIPT, *words) == 2
    assert "OUTPUT_DIR" in error_of(capsys)


def test_all_settings_problems_come_at_once(tmp_path, monkeypatch, capsys):
    words = arguments(tmp_path, learning_rate="fast", epochs="-1")
    assert run_here(monkeypatch, SCRIPT, *words) == 2
    error = error_of(capsys)
    assert "LEARNING_RATE" in error and "EPOCHS" in error


def test_a_whole_run_writes_a_plain_adapter_and_its_logs(tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "chat.jsonl")
    words = arguments(
        tmp_path, base_model=tiny_model_folder(tmp_path), quantization="none", persona="ada"
    )
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    folder = tmp_path / "adapters" / "ada-tiny"
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "run.json", "README.md"} <= names
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run["steps"] == 4
    assert set(run["losses"]) >= {"base_nats_per_token", "trained_bits_per_character"}
    log = (tmp_path / "logs" / "training.log").read_text(encoding="utf-8")
    for word in ("step 4 of 4", "loss", "learning rate", "messages/s", "tokens/s", "GB", "left"):
        assert word in log
    events = read_events(tmp_path / "logs" / "ada-tiny")
    kinds = "start plan held_out saved answers step step step step saved answers held_out end"
    assert [event["kind"] for event in events] == kinds.split()
    steps = [event["step"] for event in events if event["kind"] != "plan"]
    assert steps == [0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert events[-1]["outcome"] == "finished"
    assert events[-1]["next_command"].endswith(f"scripts/chat.py --adapter {folder}")
    assert list((tmp_path / "logs" / "tensorboard").rglob("events.out.*"))
    capsys.readouterr()
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    assert "The adapter is finished" in capsys.readouterr().out
    further = [*words, "--continue-from", folder, "--epochs", "0.5"]
    assert run_here(monkeypatch, SCRIPT, *further) == 0
    assert (tmp_path / "adapters" / "ada-tiny-further" / "run.json").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="takes the lines apart as sh does")
def test_the_commands_at_the_end_can_be_typed_as_they_are(tmp_path, capsys):
    folder = tmp_path / "my adapters" / "ada"
    runpy.run_path(str(ROOT / SCRIPT))["say_finished"](folder, make_console())
    _, talk, further = (line.partition(": ")[2] for line in capsys.readouterr().out.splitlines())
    assert shlex.split(talk)[-2:] == ["--adapter", str(folder)]
    assert shlex.split(further)[-4:] == ["--continue-from", str(folder), "--epochs", "0.5"]


def test_a_run_goes_on_bit_for_bit_with_less_memory_free(tmp_path, monkeypatch, capsys):
    """Dropout makes every other choice of rows show; what memory lacks, checkpointing gives."""
    write_chat(tmp_path / "chat.jsonl", 200)
    words = arguments(
        tmp_path,
        base_model=tiny_model_folder(tmp_path),
        quantization="none",
        lora_dropout=0.3,
        gradient_accumulation_steps=16,
        max_seq_length=128,  # several examples a step
        max_steps=8,
        save_every_steps=4,
    )
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    run = tmp_path / "adapters" / "server-tiny"
    undisturbed = (run / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    (run / "adapter_model.safetensors").unlink()
    (run / "run.json").unlink()
    monkeypatch.setattr("discord_lora.hardware.Hardware.free_bytes", lambda _self: 2e9)
    assert " 0 of 2 layers checkpointed" in capsys.readouterr().out
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    assert " 2 of 2 layers checkpointed" in capsys.readouterr().out
    assert (run / "adapter_model.safetensors").read_bytes() == undisturbed


def test_ready_conversations_are_trained_and_talked_to(tmp_path, monkeypatch, capsys):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]
    sharegpt = [{"from": "human", "value": "how are you?"}, {"from": "gpt", "value": "I am fine"}]
    lines = [{"messages": turns}, {"conversations": sharegpt}] * 10
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = arguments(tmp_path, base_model=tiny_model_folder(tmp_path), quantization="none")
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    assert "19 messages of Bot in 19 examples" in capsys.readouterr().out
    chat = ["--output-dir", tmp_path / "adapters", "--message", "hi", "--json"]
    assert run_here(monkeypatch, "scripts/chat.py", *chat, "--max-reply-tokens", "3") == 0
    assert json.loads(capsys.readouterr().out)["voice"] == "Bot"


def finish(process):
    out, err = process.communicate(timeout=280)
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl+C the POSIX way")
def test_a_run_stopped_by_ctrl_c_ends_as_an_undisturbed_one(tmp_path):
    """The real thing: sample model, NF4, dropout, two processes, compared byte for byte."""
    write_chat(tmp_path / "chat.jsonl")
    elsewhere = {"output_dir": tmp_path / "undisturbed", "logs_dir": tmp_path / "undisturbed-logs"}
    undisturbed = arguments(tmp_path, persona="ada", **elsewhere)
    code, _, error = finish(start(SCRIPT, *undisturbed))
    assert code == 0, error

    words = arguments(tmp_path, persona="ada")
    process = start(SCRIPT, *words, PYTHONIOENCODING="cp1252")
    wait_for_steps(process, tmp_path / "logs" / "ada-sample", 2)
    os.kill(process.pid, signal.SIGINT)
    code, out, error = finish(process)
    assert code == 130, out + error
    assert "Run the same command again" in error

    code, out, error = finish(start(SCRIPT, *words, PYTHONIOENCODING="cp1252"))
    assert code == 0, error
    assert "going on after step" in out
    ends = [
        (tmp_path / name / "ada-sample" / "adapter_model.safetensors").read_bytes()
        for name in ("undisturbed", "adapters")
    ]
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_a_utf16_env_file_and_a_cp1252_console_work_on_every_script(tmp_path):
    write_chat(tmp_path / "chat.jsonl", people=("Zoë ✨", "Łukasz"))
    env = tmp_path / "my.env"
    text = (
        f'TRAINING_DATA_PATH="{tmp_path / "chat.jsonl"}"\r\nPERSONA=Zoë ✨\r\nMAX_STEPS=2\r\n'
        f"GRADIENT_ACCUMULATION_STEPS=2\r\nOUTPUT_DIR={tmp_path / 'adapters'}\r\n"
        f"LOGS_DIR={tmp_path / 'logs'}\r\nMAX_VALIDATION_MESSAGES=4\r\nMAX_REPLY_TOKENS=40\r\n"
        f"BASE_MODEL={tiny_model_folder(tmp_path)}\r\nQUANTIZATION=none\r\n"
    )
    env.write_bytes(text.encode("utf-16"))
    for script, *words in (
        ("scripts/analyze_training_data.py", "--show-sample", "2"),
        (SCRIPT,),
        ("scripts/chat.py", "--message", "hello ✨", "--json", "--seed", "3"),
        ("scripts/chat.py", "--message", "hello ✨", "--base"),
    ):
        code, out, error = finish(
            start(script, "--env-file", env, *words, PYTHONIOENCODING="cp1252")
        )
        assert code == 0, (script, error)
        assert "Traceback" not in error
        if "--json" in words:
            assert json.loads(out)["voice"] == "Zoë ✨"


def run_of_server(tmp_path, monkeypatch, **settings):
    """Its run.json and the events of its history."""
    write_chat(tmp_path / "chat.jsonl")
    words = arguments(tmp_path, base_model=tiny_model_folder(tmp_path), **settings)
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    run = json.loads(
        (tmp_path / "adapters" / "server-tiny" / "run.json").read_text(encoding="utf-8")
    )
    return run, read_events(tmp_path / "logs" / "server-tiny")


def test_the_adapter_is_that_of_the_lowest_held_out_loss(tmp_path, monkeypatch, capsys):
    run, events = run_of_server(
        tmp_path,
        monkeypatch,
        max_steps=40,
        epochs=99,
        eval_every_steps=2,
        learning_rate=1,
        save_every_steps=100,
    )
    measured = {e["step"]: e["nats_per_token"] for e in events if e["kind"] == "held_out"}
    del measured[0]
    best = min(measured, key=measured.get)
    assert best < 40, "the rate is so high that it gets worse"
    assert run["steps"] == best
    assert run["losses"]["trained_nats_per_token"] == measured[best]
    assert run["losses"]["last_nats_per_token"] == measured[40]
    assert f"the adapter is that of step {best}" in capsys.readouterr().out
    assert events[-1]["sentence"] == f"the adapter is that of step {best}"
    folder = tmp_path / "adapters" / "server-tiny"
    saved = load_file(folder / "checkpoints" / f"step-{best:08d}" / "weights.safetensors")
    written = load_file(folder / "adapter_model.safetensors")
    assert {t.sum().item() for t in written.values()} == {t.sum().item() for t in saved.values()}


def test_a_run_stops_early_when_the_held_out_loss_gets_no_better(tmp_path, monkeypatch, capsys):
    run, events = run_of_server(
        tmp_path,
        monkeypatch,
        max_steps=40,
        epochs=99,
        eval_every_steps=2,
        learning_rate=0.3,
        early_stopping_patience=2,
    )
    measured = [e["step"] for e in events if e["kind"] == "held_out"]
    assert measured[-1] < 40
    out = " ".join(capsys.readouterr().out.split())
    assert "stopping early" in out
    (end,) = (e for e in events if e["kind"] == "end")
    assert end["outcome"] == "finished"
    why = "stopping early: no lower held-out loss in 2 measurements"
    assert end["sentence"] == f"{why}; the adapter is that of step {run['steps']}"
    assert f"{end['sentence']}." in out, "the outcome at the end has it, too"


def test_what_fails_once_the_adapter_is_written_fails_no_run(tmp_path, monkeypatch, capsys):
    """A process that is killed while it keeps the timing has ended before."""
    known = []

    def keep_timing(*_arguments, **_options):
        known.extend(read_events(tmp_path / "logs" / "server-tiny"))
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(session, "keep_timing", keep_timing)
    _, events = run_of_server(tmp_path, monkeypatch)
    assert events == known
    assert (known[-1]["kind"], known[-1]["outcome"]) == ("end", "finished")
    out = capsys.readouterr().out
    assert "no timing for the next estimate: RuntimeError: CUDA error: out of memory" in out
    assert "The adapter is finished" in out


def test_losses_that_are_not_finite_send_the_run_back_and_end_in_a_diagnosis(
    tmp_path, monkeypatch, capsys
):
    """Whatever the model is given after the start, its loss is NaN."""
    forward = TrainingModel.forward

    def spoiled(model, batch):
        begun = any(tmp_path.glob("adapters/*/checkpoints/step-*"))
        return forward(model, batch) * (float("nan") if begun and model.training else 1)

    monkeypatch.setattr(TrainingModel, "forward", spoiled)
    write_chat(tmp_path / "chat.jsonl")
    words = arguments(tmp_path, base_model=tiny_model_folder(tmp_path), max_steps=40, epochs=99)
    assert run_here(monkeypatch, SCRIPT, *words) == 2
    out, error = capsys.readouterr()
    assert "going on from step 0 with a learning rate of 5.0e-04" in out
    assert "is not finite, also after 3 returns" in " ".join(error.split())
    events = read_events(tmp_path / "logs" / "server-tiny")
    kinds = [event["what"] for event in events if event["kind"] == "incident"]
    assert kinds.count("went_back") == 3 and kinds.count("not_finite") == 12
    assert events[-1]["outcome"] == "failed"


def test_a_damaged_checkpoint_that_is_met_while_going_back_is_named(tmp_path, monkeypatch):
    forward = TrainingModel.forward

    def spoiled(model, batch):
        newest = next(tmp_path.glob("adapters/*/checkpoints/step-00000004"), None)
        spoil = newest and model.training and not newest.with_suffix(".damaged").exists()
        if spoil:
            (newest / "state.pt").write_bytes(b"")
        return forward(model, batch) * (float("nan") if spoil else 1)

    monkeypatch.setattr(TrainingModel, "forward", spoiled)
    _, events = run_of_server(tmp_path, monkeypatch, max_steps=9, epochs=99, save_every_steps=2)
    incidents = {event["what"]: event for event in events if event["kind"] == "incident"}
    assert "step-00000004 (state.pt is damaged)" in incidents["damaged_checkpoint"]["sentence"]
    assert incidents["went_back"]["back_to"] == 2


def measured_by(events):
    return {e["step"]: e["nats_per_token"] for e in events if e["kind"] == "held_out" and e["step"]}


def test_where_the_best_cannot_be_saved_the_adapter_is_the_best_that_was(tmp_path, monkeypatch):
    settings = {"max_steps": 20, "epochs": 99, "eval_every_steps": 2, "learning_rate": 1}
    run, events = run_of_server(tmp_path, monkeypatch, **settings)
    measured = measured_by(events)
    best = min(measured, key=measured.get)
    assert run["steps"] == best < 20, "the rate is so high that it gets worse"
    save_checkpoint = keeping.save_checkpoint

    def save_others(folder, checkpoint, **options):
        if checkpoint.step == best:
            raise UserError("planted")
        return save_checkpoint(folder, checkpoint, **options)

    monkeypatch.setattr(keeping, "save_checkpoint", save_others)
    monkeypatch.setattr(keeping, "PAUSES", ())
    (tmp_path / "again").mkdir()
    run, events = run_of_server(tmp_path / "again", monkeypatch, **settings)
    assert measured_by(events) == measured
    del measured[best]
    assert run["steps"] == min(measured, key=measured.get)
    assert [e["what"] for e in events if e["kind"] == "incident"] == ["not_saved"]


def ask_while_measuring(monkeypatch, number, how):
    """Let the measurement of this number, counted from 1, begin with a request to stop."""
    stop_on_signal, evaluate, requests, calls = session.stop_on_signal, measured.evaluate, [], []

    @contextmanager
    def listening(*arguments):
        with stop_on_signal(*arguments) as request:
            requests.append(request)
            yield request

    def ask(*arguments):
        calls.append(1)
        if len(calls) == number:
            getattr(requests[0], how)("its window was closed")
        return evaluate(*arguments)

    monkeypatch.setattr(session, "stop_on_signal", listening)
    monkeypatch.setattr(measured, "evaluate", ask)


def test_a_stop_before_the_first_step_does_not_say_that_something_is_saved(tmp_path, monkeypatch):
    write_chat(tmp_path / "chat.jsonl")
    words = arguments(tmp_path, base_model=tiny_model_folder(tmp_path))
    ask_while_measuring(monkeypatch, 1, "ask")
    assert run_here(monkeypatch, SCRIPT, *words) == 130
    (end,) = (e for e in read_events(tmp_path / "logs" / "server-tiny") if e["kind"] == "end")
    assert end["sentence"] == "Nothing was learned yet, so nothing is lost."
    assert not list(tmp_path.glob("adapters/*/checkpoints/*"))
    assert run_here(monkeypatch, SCRIPT, *words) == 0


def test_looking_ahead_is_no_training_time(tmp_path, monkeypatch):
    logs, announce = [], session.announce

    def slow(_state, _settings, _hardware, log, **options):
        before = log.training_seconds
        announce(_state, _settings, _hardware, log, **options)
        logs.append(log.training_seconds - before)

    monkeypatch.setattr(session, "announce", slow)
    run_of_server(tmp_path, monkeypatch)
    assert logs == [0.0]


def test_a_window_closed_while_the_loss_is_measured_loses_nothing(tmp_path, monkeypatch, capsys):
    """There is no time for the measurement: it is made up for when the run goes on."""
    settings = {"max_steps": 6, "epochs": 99, "eval_every_steps": 2, "lora_dropout": 0.1}
    _, events = run_of_server(tmp_path, monkeypatch, **settings)
    undisturbed = measured_by(events)
    ask_while_measuring(monkeypatch, 3, "ask_in_a_hurry")  # after step 4
    again = tmp_path / "again"
    again.mkdir()
    write_chat(again / "chat.jsonl")
    words = arguments(again, base_model=tiny_model_folder(again), **settings)
    assert run_here(monkeypatch, SCRIPT, *words) == 130
    checkpoints = again / "adapters" / "server-tiny" / "checkpoints"
    progress = json.loads((checkpoints / "step-00000004" / "progress.json").read_text())
    assert progress["measurement_due"] and progress["measured"]["last_step"] == 2
    capsys.readouterr()
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    assert "going on after step 4" in capsys.readouterr().out
    events = read_events(again / "logs" / "server-tiny")
    assert measured_by(events) == undisturbed
    after_step_4 = [event["kind"] for event in events if event.get("step") == 4]
    made_up = after_step_4.index("held_out")
    assert after_step_4[made_up + 1] == "saved", "a run that is killed now has it"
    ends = [
        (it / "adapters" / "server-tiny" / "adapter_model.safetensors").read_bytes()
        for it in (tmp_path, again)
    ]
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_once_and_its_time_is_no_start_up(tmp_path):
    write_chat(tmp_path / "chat.jsonl")
    hub = FakeHub(tiny_model_folder(tmp_path))
    hub.slow_seconds, hub.cuts = 4, 1

    def train(name, **environment):
        words = arguments(tmp_path, base_model=NAME, run_name=name, max_steps=20, epochs=9)
        process = start(SCRIPT, *words, HF_HOME=str(tmp_path / "hub"), **environment)
        out, error = process.communicate(timeout=200)
        assert process.returncode == 0, (out + error).decode()
        line = (tmp_path / "logs" / "timings.jsonl").read_text().splitlines()[-1]
        return json.loads(line)["start_up_seconds"]

    with hub.running() as address:
        first = train("first", HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert hub.fetched.count("model.safetensors") == 2, "it was cut off, and fetched anew"
    assert first < train("second", HF_HUB_OFFLINE="1") + hub.slow_seconds
