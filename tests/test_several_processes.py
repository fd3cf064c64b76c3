"""`accelerate launch` with two processes learns what one process learns."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from run_scripts import ROOT, tiny_model_folder, write_chat
from test_train_lora import SCRIPT, arguments

LAUNCH = ("-m", "accelerate.commands.launch")
DDP = (
    *LAUNCH,
    "--multi_gpu",
    *("--num_processes", "2"),
    *("--num_machines", "1"),
    *("--mixed_precision", "no"),
    *("--dynamo_backend", "no"),
)
"""On a computer without a card, `--multi_gpu` is what makes accelerate start more than one."""
FSDP = (*LAUNCH, "--config_file", "training/fsdp.yaml", "tests/launched.py", "sharded")


def train(words, launcher=()):
    command = [sys.executable, *launcher, SCRIPT, *map(str, words)]
    answer = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def prepare(tmp_path, **model):
    """A chat, a base model, and the settings of the runs."""
    write_chat(tmp_path / "chat.jsonl", 200)
    return {
        "base_model": tiny_model_folder(tmp_path, **model),
        "quantization": "none",
        "lora_dropout": 0,
        "max_steps": 20,
        "learning_rate": "1e-2",
        "save_every_steps": 10,
    }


def largest_difference(one, two):
    files = [folder / "server-tiny" / "adapter_model.safetensors" for folder in (one, two)]
    first, second = map(load_file, files)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def interrupted_at_step_10(output, copy):
    """A copy of a finished run as it was in the middle."""
    shutil.copytree(output, copy)
    run = copy / "server-tiny"
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    (run / "adapter_model.safetensors").unlink()
    (run / "run.json").unlink()
    return copy


@pytest.mark.slow
def test_two_processes_end_with_the_adapter_of_one_and_go_on_where_they_stopped(tmp_path):
    settings = prepare(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    train(arguments(tmp_path, output_dir=one, **settings))
    out = train(arguments(tmp_path, output_dir=two, **settings), DDP)
    assert out.count("step 20 of 20") == 1, "one process speaks for all"
    assert largest_difference(one, two) < 1e-5

    again = interrupted_at_step_10(two, tmp_path / "again")
    out = train(arguments(tmp_path, output_dir=again, **settings), DDP)
    assert "going on after step 10" in out
    assert largest_difference(two, again) == 0


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_sharded_weights_end_with_the_adapter_of_one_process_and_the_same_checkpoints(
    tmp_path, tied
):
    settings = prepare(tmp_path, tie_word_embeddings=tied)
    one, two = tmp_path / "one", tmp_path / "two"
    train(arguments(tmp_path, output_dir=one, **settings))
    checkpointing = "true" if tied else "auto"
    words = arguments(tmp_path, output_dir=two, gradient_checkpointing=checkpointing, **settings)
    out = train(words, FSDP)
    assert out.count("step 20 of 20") == 1, "one process speaks for all"
    assert "The slower way" not in out, "the fast pieces prove themselves on sharded weights, too"
    assert largest_difference(one, two) < 1e-5

    for launcher, output in ((FSDP, two), ((), two), (FSDP, one)):
        again = interrupted_at_step_10(output, tmp_path / f"again{len(list(tmp_path.iterdir()))}")
        out = train(arguments(tmp_path, output_dir=again, **settings), launcher)
        assert "going on after step 10" in out
        assert largest_difference(one, again) < 1e-5


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_halves_the_pieces_of_all(tmp_path):
    settings = {**prepare(tmp_path), "max_steps": 4, "max_tokens_per_microbatch": 200}
    out = train(
        arguments(tmp_path, output_dir=tmp_path / "two", **settings),
        (*DDP, "tests/launched.py", "memory-runs-out"),
    )
    assert "step 4 of 4" in out
    checkpoint = next(Path(tmp_path / "two" / "server-tiny" / "checkpoints").glob("step-*"))
    progress = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    assert progress["token_budget"] == 100
