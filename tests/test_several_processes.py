"""`accelerate launch` with two processes learns what one process learns."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma2Config

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


def prepare(tmp_path, model=None):
    """A chat, a base model, and the settings of the runs."""
    write_chat(tmp_path / "chat.jsonl", 200)
    return {
        "base_model": tiny_model_folder(tmp_path, model),
        "quantization": "none",
        "lora_dropout": 0,
        # Several examples a step, so that both processes have some.
        "gradient_accumulation_steps": 16,
        "max_seq_length": 96,
        "epochs": 2,
        "max_steps": 20,
        "max_grad_norm": 0.05,  # clips each step, which takes the norm over all shares
        "learning_rate": "1e-2",
        "save_every_steps": 12,
    }


def gemma2():
    """A model whose embedding is its head, and whose attention is not of the fast kind."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        Gemma2Config(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
        )
    )


def slower_way(output):
    """What the start of a run says about the model's pieces."""
    return [line for line in output.splitlines() if "computes differently" in line]


def largest_difference(one, two):
    files = [folder / "server-tiny" / "adapter_model.safetensors" for folder in (one, two)]
    first, second = map(load_file, files)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def interrupted_midway(output, copy):
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

    again = interrupted_midway(two, tmp_path / "again")
    out = train(arguments(tmp_path, output_dir=again, **settings), DDP)
    assert "going on after step 12" in out
    assert largest_difference(two, again) == 0


@pytest.mark.slow
def test_sharded_weights_end_with_the_adapter_and_the_checkpoints_of_one_process(tmp_path):
    settings = prepare(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    train(arguments(tmp_path, output_dir=one, **settings))
    out = train(arguments(tmp_path, output_dir=two, **settings), FSDP)
    assert out.count("step 20 of 20") == 1, "one process speaks for all"
    assert not slower_way(out), "the fast pieces prove themselves on sharded weights, too"
    assert largest_difference(one, two) < 1e-5

    for number, (launcher, output) in enumerate([(FSDP, two), ((), two), (FSDP, one)]):
        again = interrupted_midway(output, tmp_path / f"again-{number}")
        out = train(arguments(tmp_path, output_dir=again, **settings), launcher)
        assert "going on after step 12" in out
        assert largest_difference(one, again) < 1e-5


@pytest.mark.slow
def test_shared_embeddings_checkpointed_layers_and_slow_pieces_are_sharded_too(tmp_path):
    settings = {**prepare(tmp_path, gemma2()), "gradient_checkpointing": "true"}
    one, two = tmp_path / "one", tmp_path / "two"
    alone = train(arguments(tmp_path, output_dir=one, **settings))
    out = train(arguments(tmp_path, output_dir=two, **settings), FSDP)
    assert slower_way(out) == slower_way(alone)
    assert "attention" in slower_way(out)[0]
    assert largest_difference(one, two) < 1e-5


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
    assert 50 < progress["token_budget"] <= 100, "half of the largest row"


@pytest.mark.slow
def test_two_processes_check_together_and_one_speaks(tmp_path):
    out = train([*arguments(tmp_path, **prepare(tmp_path)), "--check"], DDP)
    assert out.count("went forth and back") == 1
    assert out.count("ready: run the same command without --check") == 1
    assert not (tmp_path / "adapters").exists()
