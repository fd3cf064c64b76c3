"""The plan of the night as people ask for it, on a tiny model."""

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch

from discord_lora.adapter_folder import RUN_FILE, WEIGHTS_FILE
from discord_lora.analysis.plan.timings import newest_timing
from discord_lora.finetuning import calibration, forecast
from discord_lora.finetuning.run_folder import IDENTITY_FILE
from discord_lora.hardware import Hardware, detect_hardware
from discord_lora.settings import load_settings
from run_scripts import run_here, tiny_model_folder, write_chat

ANALYZE, TRAIN = "scripts/analyze_training_data.py", "training/train_lora.py"


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Settings as options: 400 invented messages, a tiny model, everything below `tmp_path`."""
    # What is timed in another process has as many threads as here.
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    chosen = {
        "training_data_path": write_chat(tmp_path / "chat.jsonl", 400),
        "base_model": tiny_model_folder(tmp_path),
        "logs_dir": tmp_path / "logs",
        "max_seq_length": 256,
        "gradient_accumulation_steps": 4,
    }
    return [word for key, value in chosen.items() for word in ("--" + key.replace("_", "-"), value)]


def settings_of(words):
    names = [str(word).removeprefix("--").replace("-", "_") for word in words[::2]]
    return load_settings(dict(zip(names, map(str, words[1::2]), strict=True)), env_file=None)


def time_only_five_rounds():
    calibration.LONG_ENOUGH = 1e-9


@pytest.fixture(autouse=True)
def _timing_is_over_soon(monkeypatch):
    """In the process of its own."""
    pool = partial(ProcessPoolExecutor, initializer=time_only_five_rounds)
    monkeypatch.setattr(forecast, "ProcessPoolExecutor", pool)


def test_a_plan_is_modelled_until_it_is_calibrated(words, monkeypatch, capsys):
    assert run_here(monkeypatch, ANALYZE, *words) == 0
    said = capsys.readouterr().out
    assert "(modelled: within a factor of 1.5)" in said
    assert "Recommended: " in said
    assert run_here(monkeypatch, ANALYZE, *words, "--calibrate") == 0
    assert "(calibrated: within a factor of 1.1)" in capsys.readouterr().out
    settings = settings_of(words)
    timing = newest_timing(settings.logs_dir, detect_hardware().description, settings)
    assert timing.time.source == "calibrated"
    assert min(timing.time.as_tuple()) >= 0
    assert timing.time.forward > 0
    assert timing.base_bytes > 0
    assert timing.start_up_seconds > 0
    lines = (settings.logs_dir / "timings.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["time"]["source"] == "calibrated", "plain data"


def test_a_model_that_is_not_here_yet_comes_on_top(words, monkeypatch, capsys):
    assert run_here(monkeypatch, ANALYZE, *words) == 0
    assert "not on this computer" not in capsys.readouterr().out
    monkeypatch.setattr(forecast, "weights_are_here", lambda _location: False)
    assert run_here(monkeypatch, ANALYZE, *words) == 0
    assert "is not on this computer yet. Fetching it, about 0.0 GB" in capsys.readouterr().out


def test_a_full_card_is_said_and_is_looked_at_after_timing(words, monkeypatch, capsys):
    timed = []

    def no_room(_hardware):
        assert timed
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(forecast, "in_a_process_of_its_own", lambda *_: None)
    monkeypatch.setattr(forecast, "add_timing", lambda *_: timed.append(True))
    monkeypatch.setattr(Hardware, "machine", no_room)
    assert run_here(monkeypatch, ANALYZE, *words, "--calibrate") == 2
    assert "no memory left to plan with" in capsys.readouterr().err


def test_a_finished_run_leaves_its_timing(words, tmp_path, monkeypatch, capsys):
    run = [*words, "--output-dir", tmp_path / "adapters", "--max-steps", 20]
    assert run_here(monkeypatch, TRAIN, *run) == 0
    settings = settings_of(words)
    timing = newest_timing(settings.logs_dir, detect_hardware().description, settings)
    assert timing.time.source == "measured here"
    assert timing.save_seconds > 0
    assert run_here(monkeypatch, ANALYZE, *words) == 0
    assert "(measured here: within" in capsys.readouterr().out


def test_another_card_is_planned_without_having_it(words, monkeypatch, capsys):
    assert run_here(monkeypatch, ANALYZE, *words, "--gpu", "rtx 2080 ti") == 0
    said = capsys.readouterr().out
    assert "on RTX 2080 Ti" in said
    assert "not measured on any card" in said
    assert run_here(monkeypatch, ANALYZE, *words, "--gpu", "A100 80GB") == 0
    assert "on A100 80 GB" in capsys.readouterr().out
    assert run_here(monkeypatch, ANALYZE, *words, "--gpu", "RTX 2080 Tie") == 2
    assert "RTX 2080 Ti" in capsys.readouterr().err
    assert run_here(monkeypatch, ANALYZE, *words, "--gpu", "A100", "--calibrate") == 2


def test_the_recommendation_goes_into_env(words, tmp_path, monkeypatch, capsys):
    path = tmp_path / "my.env"
    path.write_text("# mine\nEPOCHS=9\n")
    more = ["--env-file", path, "--hours", 20, "--write-env"]
    monkeypatch.setenv("LEARNING_RATE", "5e-4")
    assert run_here(monkeypatch, ANALYZE, *words, *more) == 0
    said = capsys.readouterr().out
    assert "There is time for all of it" in said
    assert "LEARNING_RATE: set in the environment" in " ".join(said.split())
    assert path.read_text().splitlines()[:2] == ["# mine", "EPOCHS=3"]
    assert path.with_name("my.env.backup").read_text() == "# mine\nEPOCHS=9\n"


def test_what_the_plan_holds_for_goes_into_env(words, tmp_path, monkeypatch, capsys):
    path = tmp_path / "my.env"
    path.write_text("PERSONA=Bob\nLORA_R=8\n")
    more = ["--env-file", path, "--persona", "Ada", "--write-env"]
    assert run_here(monkeypatch, ANALYZE, *words, *more) == 0
    assert "PERSONA=Ada" in capsys.readouterr().out
    written, planned = load_settings(env_file=path), settings_of(words)
    assert (written.persona, written.lora_r) == ("Ada", 8)
    for name in ("training_data_path", "base_model", "max_seq_length", "messages_per_step"):
        assert getattr(written, name) == getattr(planned, name)
    assert "LOGS_DIR" not in path.read_text()


def test_a_plan_for_exports_is_not_written(words, tmp_path, monkeypatch, capsys):
    path = tmp_path / "my.env"
    path.write_text("EPOCHS=9\n")
    write_chat(tmp_path / "other.jsonl", 200)
    more = ["--env-file", path, "--write-env"]
    assert run_here(monkeypatch, ANALYZE, tmp_path / "other.jsonl", *words, *more) == 2
    assert "prepare_training_data.py" in capsys.readouterr().err
    assert path.read_text() == "EPOCHS=9\n"


def test_the_processor_is_planned_where_it_is_asked_for(words, monkeypatch, capsys):
    assert run_here(monkeypatch, ANALYZE, *words, "--gpu", "CPU") == 0
    said = capsys.readouterr().out
    assert "on CPU" in said
    assert "(modelled: within a factor of 1.5)" in said


def test_exports_are_planned_as_they_are(words, tmp_path, monkeypatch, capsys):
    write_chat(tmp_path / "other.jsonl", 200)
    assert run_here(monkeypatch, ANALYZE, tmp_path / "other.jsonl", *words, "--hours", 9) == 0
    said = capsys.readouterr().out
    assert "messages / (1 x 4) = " in said
    assert "No plan" not in said
    assert not (tmp_path / "data").exists()
    steps = int(said.split(" messages / (1 x 4) = ")[0].split()[-1].replace(",", ""))
    assert 150 < steps < 200


def test_nonsense_is_refused(words, monkeypatch, capsys):
    for wish in (["--seconds-per-step", 0], ["--hours", -1], ["--ready-by", "noon"]):
        assert run_here(monkeypatch, ANALYZE, *words, *wish) == 2
        assert wish[0] in capsys.readouterr().err


def test_a_plan_that_cannot_be_is_not_written(words, tmp_path, monkeypatch, capsys):
    path = tmp_path / "my.env"
    path.write_text("EPOCHS=9\n")
    wish = ["--env-file", path, "--hours", 1e-9, "--write-env"]
    assert run_here(monkeypatch, ANALYZE, *words, *wish) == 2
    assert "Nothing is written" in capsys.readouterr().err
    assert path.read_text() == "EPOCHS=9\n"


def test_a_plan_does_not_stop_an_unfinished_run(words, tmp_path, monkeypatch, capsys):
    finished, unfinished = (tmp_path / name for name in ("server-tiny", "server-tiny-2"))
    (unfinished / "checkpoints" / "step-00002000").mkdir(parents=True)
    finished.mkdir()
    for name in (WEIGHTS_FILE, RUN_FILE):
        (finished / name).touch()
    (finished / IDENTITY_FILE).write_text("{}")
    path = tmp_path / "my.env"
    before = f"OUTPUT_DIR='{tmp_path}'\n"
    path.write_text(before)
    assert run_here(monkeypatch, ANALYZE, *words, "--env-file", path) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "server-tiny-2 holds an unfinished run, saved after step 2,000, which" in said
    assert run_here(monkeypatch, ANALYZE, *words, "--env-file", path, "--write-env") == 2
    assert "the unfinished run could not go on" in " ".join(capsys.readouterr().err.split())
    assert path.read_text() == before
    path.write_text(f"{before}EPOCHS=3\nMAX_STEPS=0\nLEARNING_RATE=0.0005\n")  # as planned
    assert run_here(monkeypatch, ANALYZE, *words, "--env-file", path, "--write-env") == 0
    assert "unfinished" in capsys.readouterr().out
    path.write_text(f"{before}RUN_NAME=another\n")
    assert run_here(monkeypatch, ANALYZE, *words, "--env-file", path, "--write-env") == 0
    assert "unfinished" not in capsys.readouterr().out
    assert "EPOCHS=3" in path.read_text()
