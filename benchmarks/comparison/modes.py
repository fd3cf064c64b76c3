"""What `compare_training.py` can be asked for: the comparison, the profile, the rows, the sweep."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from comparison.job import Job, write_json
from comparison.report import (
    append_record,
    as_record,
    check_same_messages,
    gemm_fraction,
    print_report,
)
from comparison.rounds import BENCHMARKS, Round, Say, order_of, pick, run_job, run_round
from discord_lora.console import UserError, make_console, plainly
from discord_lora.messages.prepare import PrepareOptions, prepare
from discord_lora.model_location import locate_base_model
from discord_lora.sample import is_sample, sample_chat_export
from discord_lora.settings import Settings, load_settings

ROOT = BENCHMARKS.parent
SAMPLE_LEARNING_RATE = 1e-3
"""A model of 135M parameters wants more than the 2e-4 that suit one of 7B."""

# Tokens a row and rows a pass that `--sweep-trl` tries; short ones gather several passes a step, so
# that its messages are as many as everyone's. The fastest of them on two CPU cores is TRL's best:
# a longer row costs more attention and more logits in memory than it saves.
SWEEP = ((128, 1), (256, 1), (384, 1), (256, 2), (512, 1), (1024, 1), (2048, 1))
BEST_ROW_TOKENS, BEST_ROWS_PER_PASS = 512, 1


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked for, on data prepared in a folder that is deleted afterwards."""
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        job = make_job(arguments, Path(folder), plainly(console))
        if arguments.profile:
            show_profile(run_job(replace(job, task="profile"), plainly(console)), console)
        elif arguments.rows:
            show_rows(job, console)
        elif arguments.sweep_trl:
            sweep_trl(job, console)
        else:
            compare(arguments, job, console)


def make_job(arguments: argparse.Namespace, folder: Path, say: Say) -> Job:
    """Everything that the contenders of this call have in common.

    Raises:
        UserError: a setting, the data or the model does not exist.
    """
    overrides: dict[str, Any] = {
        "base_model": arguments.base_model,
        "persona": arguments.persona,
        # So that losses compare to the last digit, and nobody has an optimizer of its own.
        "lora_dropout": 0.0,
        "optimizer": "adamw",
        "training_data_path": training_data(arguments.data, folder, say),
        "logs_dir": folder / "logs",
        "output_dir": folder / "out",
    }
    if is_sample(arguments.base_model):
        overrides["learning_rate"] = SAMPLE_LEARNING_RATE
    if arguments.learning_rate:
        overrides["learning_rate"] = arguments.learning_rate
    if arguments.rows:
        overrides["max_tokens_per_microbatch"] = arguments.rows
    overrides.update(given_settings(arguments.set))
    return Job(
        task="machine",
        settings=as_plain_data(load_settings(overrides, env_file=None)),
        location=locate_base_model(arguments.base_model, say),
        messages=arguments.messages,
        held_out_messages=arguments.held_out,
        device=arguments.device,
        row_tokens=arguments.rows or BEST_ROW_TOKENS,
        rows_per_pass=BEST_ROWS_PER_PASS,
    )


def given_settings(pairs: Sequence[str]) -> dict[str, str]:
    """`--set NAME=VALUE` as settings.

    Raises:
        UserError: there is no `=` in one.
    """
    given = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--set: write NAME=VALUE, not {pair}.")
        given[name.strip().lower().replace("-", "_")] = value.strip()
    return given


def as_plain_data(settings: Settings) -> dict[str, Any]:
    """All settings for a job's file; the token stays in the environment."""
    plain = settings.model_dump(mode="json", exclude={"hf_token"})
    # Contenders run in another folder.
    for name in ("training_data_path", "logs_dir", "output_dir"):
        plain[name] = str(Path(plain[name]).resolve())
    return plain


def training_data(data: Path | None, folder: Path, say: Say) -> Path:
    """The messages as JSONL: a prepared file as it is, exports prepared into `folder`."""
    if data is not None and data.suffix == ".jsonl":
        return data.resolve()
    if data is None:
        data = sample_chat_export(ROOT, say)
    out = folder / "training_data.jsonl"
    prepare(PrepareOptions(paths=(data,), out=out))
    say(f"conversations of {data}")
    return out


def compare(arguments: argparse.Namespace, job: Job, console: Console) -> None:
    """All rounds; the figures so far are written after each, so that a stop loses one round."""
    names = pick(arguments.only)
    rounds: list[Round] = []
    record: dict[str, Any] = {}
    for number in range(arguments.rounds):
        console.print(f"round {number + 1} of {arguments.rounds}")
        rounds.append(run_round(reseeded(job, number), order_of(names, number), plainly(console)))
        check_same_messages(rounds[-1])
        record = as_record(rounds, asked_for(arguments, job))
        if arguments.json:
            write_json(arguments.json, record)
    print_report(console, rounds)
    if arguments.record:
        append_record(arguments.record, record)
        console.print(f"a line added to {arguments.record}", markup=False)


def reseeded(job: Job, number: int) -> Job:
    """The job of one round: its own conversations, LoRA and order.

    Ten steps end within some percent of each other by the order of the data alone, so losses of
    one seed tell little.
    """
    return replace(job, settings={**job.settings, "seed": job.settings["seed"] + number})


def asked_for(arguments: argparse.Namespace, job: Job) -> dict[str, Any]:
    """What has to be the same for two records to compare."""
    named = ("base_model", "learning_rate", "max_seq_length", "max_tokens_per_microbatch", "seed")
    return {
        "data": arguments.data.name if arguments.data else "default",
        "messages": job.messages,
        "held_out_messages": job.held_out_messages,
        "messages_per_step": job.settings["batch_size"]
        * job.settings["gradient_accumulation_steps"],
        **{name: job.settings[name] for name in named},
        **given_settings(arguments.set),
    }


def show_rows(job: Job, console: Console) -> None:
    """Tokens a second of full rows, and how near that is to the machine's own rate."""
    one = run_round(job, ["rows"], plainly(console))
    result = one.results["rows"]
    console.print(
        f"{result['shape']}, {result['tokens']:,} tokens: {result['tokens_per_second']:.0f} "
        f"tokens/s, {gemm_fraction(one, 'rows'):.0%} of {one.flops_per_second / 1e9:,.0f} GFLOP/s; "
        f"peak {result['peak_bytes'] / 1e9:.2f} GB",
        markup=False,
    )


def show_profile(answer: dict[str, Any], console: Console) -> None:
    """Shares by kind of work, then the operators that cost most."""
    title = f"{answer['steps']} steps of ours, {answer['seconds']:.1f} s under the profiler"
    for name, heading in (("groups", title), ("operators", "the costliest operators")):
        table = Table(title=heading, box=box.ASCII)
        table.add_column("where the time goes")
        table.add_column("seconds", justify="right")
        table.add_column("share", justify="right")
        for label, spent in answer[name].items():
            table.add_row(label, f"{spent:.2f}", f"{spent / answer['seconds']:.1%}")
        console.print(table)


def sweep_trl(job: Job, console: Console) -> None:
    """Time TRL without checkpointing with each shape of rows; the best goes into this file."""
    table = Table(title="TRL without checkpointing", box=box.ASCII)
    for heading in ("rows", "messages/s", "tokens/s", "peak GB", "messages a step"):
        table.add_column(heading, justify="right")
    for row_tokens, rows_per_pass in SWEEP:
        shape = replace(job, task="trl-best", row_tokens=row_tokens, rows_per_pass=rows_per_pass)
        result = run_job(replace(shape, held_out_messages=1), plainly(console))
        table.add_row(
            result["shape"],
            f"{result['messages_per_second']:.2f}",
            f"{result['tokens_per_second']:.0f}",
            f"{result['peak_bytes'] / 1e9:.2f}",
            f"{result['messages'] / result['steps']:.1f}",
        )
    console.print(table)
