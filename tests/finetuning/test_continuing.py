"""A run goes on as it began: with its optimizer, in its folder."""

import json

import pytest

from discord_lora.console import UserError
from discord_lora.finetuning.continuing import settings_of_run, with_its_token_budget
from discord_lora.settings import Settings
from run_scripts import run_here, tiny_model_folder, write_chat
from test_train_lora import SCRIPT, arguments

TURING = "NVIDIA GeForce RTX 2080 Ti"


def optimizer(was, *, on_cuda=True, sharded=False, asked="auto"):
    progress = {"optimizer": was, "device": TURING}
    settings = Settings(optimizer=asked)
    return settings_of_run(settings, progress, on_cuda=on_cuda, sharded=sharded).optimizer


def test_auto_means_what_it_meant_at_the_start():
    """As for a run that began sharded, or without a card, and goes on alone on one."""
    assert optimizer("adamw") == "adamw"
    assert optimizer("adamw", on_cuda=False) == optimizer("adamw", sharded=True) == "adamw"
    assert optimizer("paged_adamw_8bit") == "paged_adamw_8bit"


def test_what_was_set_stays_set_and_what_is_unknown_counts_for_nothing():
    assert optimizer("adamw", asked="adamw_8bit") == "adamw_8bit"
    assert optimizer("sgd") == optimizer(None) == optimizer(["adamw"]) == "auto"


def test_a_card_that_is_gone_is_said_by_its_name():
    with pytest.raises(UserError, match=f"was on {TURING} with .* paged_adamw_8bit, .*nvidia-smi"):
        optimizer("paged_adamw_8bit", on_cuda=False)
    with pytest.raises(UserError, match="go on without FSDP"):
        optimizer("paged_adamw_8bit", sharded=True)


def test_a_token_budget_is_kept_as_long_as_its_setting_is():
    found = {"token_budget": 700, "token_budget_set": "auto"}
    auto, changed = Settings(), Settings(max_tokens_per_microbatch=300)
    assert with_its_token_budget(auto, found).max_tokens_per_microbatch == 700
    assert with_its_token_budget(changed, found) == changed
    assert with_its_token_budget(auto, {}) == auto


@pytest.fixture
def stopped_run(tmp_path, monkeypatch):
    """Its folder, and the words of its command."""
    write_chat(tmp_path / "chat.jsonl")
    words = arguments(tmp_path, base_model=tiny_model_folder(tmp_path), save_every_steps=2)
    assert run_here(monkeypatch, SCRIPT, *words) == 0
    folder = tmp_path / "adapters" / "server-tiny"
    (folder / "run.json").unlink()
    return folder, words


@pytest.mark.parametrize("more", [[], ["--check"]])
def test_a_run_of_a_card_that_is_gone_is_refused_before_the_model_is_loaded(
    stopped_run, monkeypatch, capsys, more
):
    folder, words = stopped_run
    for path in (folder / "checkpoints").iterdir():
        progress = json.loads((path / "progress.json").read_text())
        assert progress["optimizer"] == "adamw" and progress["device"] == "CPU"
        progress |= {"optimizer": "paged_adamw_8bit", "device": TURING}
        (path / "progress.json").write_text(json.dumps(progress))
    capsys.readouterr()
    assert run_here(monkeypatch, SCRIPT, *words, *more) == 2
    out, error = capsys.readouterr()
    assert TURING in error and "another version" not in error
    assert "loading" not in out
    assert run_here(monkeypatch, SCRIPT, *words, "--fresh") == 0


def test_checkpoints_are_not_taken_up_by_a_run_of_other_settings(stopped_run, monkeypatch, capsys):
    folder, words = stopped_run
    (folder / "identity.json").unlink()
    assert run_here(monkeypatch, SCRIPT, *words, "--learning-rate", "2e-3") == 2
    assert "checkpoints of another run than identity.json" in " ".join(
        capsys.readouterr().err.split()
    )
