"""`accelerate launch` with two processes learns what one process learns."""

import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from run_scripts import ROOT, tiny_model_folder, write_chat
from test_train_lora import SCRIPT, arguments

TWO_PROCESSES = (
    "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
)
"""On a computer without a card, `--multi_gpu` is what makes accelerate start more than one."""


def train(words, launcher=()):
    command = [sys.executable, *launcher, SCRIPT, *map(str, words)]
    answer = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def largest_difference(one, two):
    files = [folder / "server-tiny" / "adapter_model.safetensors" for folder in (one, two)]
    first, second = map(load_file, files)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.slow
def test_two_processes_end_with_the_adapter_of_one_and_go_on_where_they_stopped(tmp_path):
    write_chat(tmp_path / "chat.jsonl", 200)
    settings = {
        "base_model": tiny_model_folder(tmp_path),
        "quantization": "none",
        "lora_dropout": 0,
        "max_steps": 20,
        "learning_rate": "1e-2",
        "save_every_steps": 10,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    launcher = [
        "-m",
        "accelerate.commands.launch",
        *TWO_PROCESSES.split(),
        "--dynamo_backend",
        "no",
    ]
    train(arguments(tmp_path, output_dir=one, **settings))
    out = train(arguments(tmp_path, output_dir=two, **settings), launcher)
    assert out.count("step 20 of 20") == 1, "one process speaks for all"
    assert largest_difference(one, two) < 1e-5

    run = two / "server-tiny"
    whole = shutil.copytree(run, tmp_path / "whole" / "server-tiny").parent
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    (run / "adapter_model.safetensors").unlink()
    (run / "run.json").unlink()
    out = train(arguments(tmp_path, output_dir=two, **settings), launcher)
    assert "going on after step 10" in out
    assert largest_difference(whole, two) == 0
