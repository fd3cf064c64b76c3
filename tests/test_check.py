"""`train_lora.py --check` as people run it, and what every training does of it."""

import json
import shutil
from types import SimpleNamespace

import pytest

from discord_lora.analysis.morning.history import read_events
from discord_lora.finetuning import refusals
from discord_lora.settings import load_settings
from run_scripts import run_here, start, tiny_model_folder, write_chat

SCRIPT = "training/train_lora.py"


@pytest.fixture
def words(tmp_path):
    """A run of 20 steps on a tiny model, everything below `tmp_path`."""
    chosen = {
        "training_data_path": write_chat(tmp_path / "chat.jsonl", 400),
        "base_model": tiny_model_folder(tmp_path),
        "output_dir": tmp_path / "adapters",
        "logs_dir": tmp_path / "logs",
        "learning_rate": "1e-3",
        "gradient_accumulation_steps": 4,
        "max_seq_length": 256,
        "max_steps": 20,
    }
    return [word for key, value in chosen.items() for word in ("--" + key.replace("_", "-"), value)]


def said(capsys):
    """What was printed, on one line, and what was complained of."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return " ".join(captured.out.split()), captured.err


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_check_says_everything_and_keeps_nothing(words, tmp_path):
    process = start(SCRIPT, *words, "--check", PYTHONIOENCODING="cp1252", WAKEPY_FAKE_SUCCESS="1")
    out, err = (text.decode("cp1252") for text in process.communicate(timeout=120))
    assert process.returncode == 0, err
    out = " ".join(out.split())
    for word in (
        "numbers fp32: a CPU",
        "RAM free",
        "chat.jsonl is readable",
        "tiny is readable",
        "server-tiny starts",
        "4 checkpoints of",
        "went forth and back",
        "20 steps in",
        "(modelled: ",
        "started now it ends about",
        "peak memory",
        "is kept awake",
    ):
        assert word in out, word
    assert out.endswith("ready: run the same command without --check")
    assert "warning" not in out
    assert not (tmp_path / "adapters").exists()
    assert not (tmp_path / "logs").exists()


def test_what_was_checked_is_what_training_does(words, tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    out, _ = said(capsys)
    assert "server-tiny ends about" in out
    (plan,) = (e for e in read_events(tmp_path / "logs" / "server-tiny") if e["kind"] == "plan")
    assert (plan["run"], plan["steps"], plan["voice"]) == ("server-tiny", 20, "Bot")
    assert plan["label"] == "modelled"
    assert plan["seconds"] > 0
    assert plan["peak_bytes"] > 1e8 and plan["peak_label"] == "modelled"
    assert "train_lora.py --training-data-path" in plan["command"]
    before = files_in(tmp_path / "adapters")
    assert run_here(monkeypatch, SCRIPT, *words, "--check") == 0
    assert "is finished" in said(capsys)[0]
    assert run_here(monkeypatch, SCRIPT, *words, "--check", "--fresh") == 0
    out, _ = said(capsys)
    assert "is deleted and starts over" in out
    assert "(measured here: " in out
    assert files_in(tmp_path / "adapters") == before


def test_a_run_that_goes_on_is_predicted_from_where_it_is(words, tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, SCRIPT, *words, "--save-every-steps", 15) == 0
    run = tmp_path / "adapters" / "server-tiny"
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    (run / "adapter_model.safetensors").unlink()
    (run / "run.json").unlink()
    # Memory had run out on the way: it goes on with the budget that it had found.
    progress = run / "checkpoints" / "step-00000015" / "progress.json"
    saved = progress.read_bytes()
    progress.write_text(json.dumps({**json.loads(saved), "token_budget": 50}))
    before = files_in(run)
    capsys.readouterr()
    assert run_here(monkeypatch, SCRIPT, *words, "--check") == 0
    out, _ = said(capsys)
    assert "goes on after step 15" in out
    assert "5 steps in" in out
    assert "micro-batches of up to 50 tokens" in out
    assert files_in(run) == before
    progress.write_bytes(saved)
    assert run_here(monkeypatch, SCRIPT, *words) == 0


def test_all_problems_come_at_once(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000))
    wrong = ["--optimizer", "adamw_8bit", "--validation-fraction", 0]
    wrong += ["--early-stopping-patience", 2, "--lora-alpha", 400]
    for more in (["--check"], []):
        assert run_here(monkeypatch, SCRIPT, *words, *wrong, *more) == 2
        out, err = said(capsys)
        for word in ("OPTIMIZER: adamw_8bit", "EARLY_STOPPING_PATIENCE=2", "OUTPUT_DIR: the disk"):
            assert word in err, word
        assert err.count("error: ") == 3
        assert "warning" in out and "LORA_ALPHA=400" in out
        assert "ready" not in out
    assert not (tmp_path / "adapters").exists()


def test_data_and_model_are_both_complained_of(words, tmp_path, monkeypatch, capsys):
    words += ["--training-data-path", tmp_path / "none.jsonl", "--base-model", tmp_path]
    words += ["--output-dir", tmp_path / "chat.jsonl" / "adapters"]
    assert run_here(monkeypatch, SCRIPT, *words, "--check") == 2
    err = said(capsys)[1]
    assert "none.jsonl" in err
    assert "does not hold a model" in err
    assert "OUTPUT_DIR" in err


def test_a_model_that_does_not_fit_is_known_before_it_is_loaded(
    words, tmp_path, monkeypatch, capsys
):
    config = tmp_path / "tiny" / "config.json"
    large = {"hidden_size": 32_768, "intermediate_size": 131_072, "num_hidden_layers": 400}
    config.write_text(json.dumps(json.loads(config.read_text()) | large))
    more = ["--quantization", "none", "--optimizer", "adamw_8bit", "--check"]
    assert run_here(monkeypatch, SCRIPT, *words, *more) == 2
    err = said(capsys)[1]
    assert "set QUANTIZATION=nf4" in err
    assert "OPTIMIZER" in err


def test_doubts_stop_nothing(words, monkeypatch, capsys):
    doubtful = ["--max-steps", 5000, "--epochs", 0.1, "--lora-alpha", 400]
    assert run_here(monkeypatch, SCRIPT, *words, *doubtful, "--check") == 0
    out, _ = said(capsys)
    assert "MAX_STEPS=5000 is never reached" in out
    assert "LORA_ALPHA=400" in out
    assert out.endswith("ready: run the same command without --check")


def test_checkpointing_that_is_not_needed_is_doubted(words, monkeypatch, capsys):
    assert run_here(monkeypatch, SCRIPT, *words, "--gradient-checkpointing=true", "--check") == 0
    assert "GRADIENT_CHECKPOINTING=auto" in said(capsys)[0]


def test_a_single_example_that_does_not_fit_is_an_error(words, monkeypatch, capsys):
    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr("discord_lora.finetuning.out_of_memory.collate", out_of_memory)
    monkeypatch.setattr("discord_lora.finetuning.out_of_memory.time.sleep", lambda _seconds: None)
    assert run_here(monkeypatch, SCRIPT, *words, "--check") == 2
    assert "MAX_SEQ_LENGTH" in said(capsys)[1]


def test_folders_in_each_other_are_doubted(words, tmp_path, monkeypatch, capsys):
    same = ["--logs-dir", tmp_path / "adapters"]
    assert run_here(monkeypatch, SCRIPT, *words, *same, "--check") == 0
    assert "LOGS_DIR and OUTPUT_DIR are both" in said(capsys)[0]
    inside = ["--logs-dir", tmp_path / "adapters" / "server-tiny" / "logs"]
    assert run_here(monkeypatch, SCRIPT, *words, *inside, "--check") == 0
    assert "lies in the folder of this run" in said(capsys)[0]


def test_fresh_never_deletes_what_the_run_reads(words, tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, SCRIPT, *words, "--run-name", "mine") == 0
    before = files_in(tmp_path / "adapters")
    again = ["--run-name", "mine", "--continue-from", tmp_path / "adapters" / "mine", "--fresh"]
    assert run_here(monkeypatch, SCRIPT, *words, *again) == 2
    assert "CONTINUE_FROM" in said(capsys)[1]
    assert files_in(tmp_path / "adapters") == before


def test_folders_that_may_not_be_written_are_known_without_writing(tmp_path, monkeypatch):
    settings = load_settings(
        {"output_dir": tmp_path / "a" / "b", "logs_dir": tmp_path / "c"}, env_file=None
    )
    assert refusals.problems_with_folders(settings) == []
    refusing = SimpleNamespace(access=lambda _path, _mode: False, W_OK=2)
    monkeypatch.setattr(refusals, "os", refusing)
    problems = refusals.problems_with_folders(settings)
    assert [problem.partition(":")[0] for problem in problems] == ["OUTPUT_DIR", "LOGS_DIR"]
    assert list(tmp_path.iterdir()) == []
