"""One measurement in a process of its own: `python -m comparison.run_one JOB.json RESULT.json`."""

import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.job import Job, read_job, result_as_dict, write_json
from discord_lora.console import run_script
from discord_lora.settings import load_settings

if TYPE_CHECKING:
    from comparison.data import Selection
    from discord_lora.hardware import Hardware

MODULES = {"classic": "classic", "trl": "trl_sft", "ours": "ours"}


def main() -> None:
    job_path, result_path = map(Path, sys.argv[1:])
    job = read_job(job_path)
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for cards
    warnings.filterwarnings("ignore", category=FutureWarning)
    write_json(result_path, measure(job))


def measure(job: Job) -> dict[str, Any]:
    from comparison.data import load_selection
    from discord_lora.console import UserError
    from discord_lora.hardware import detect_hardware

    hardware = detect_hardware()
    if job.device == "cuda" and not hardware.is_cuda:
        raise UserError("--device cuda: torch sees no CUDA card here; leave it out, or see README.")
    if job.task == "machine":
        return measure_machine(job, hardware)
    selection = load_selection(job, load_settings(job.settings, env_file=None))
    if job.task == "profile":
        from comparison.profiling import profile

        return profile(job, selection, hardware)
    if job.task == "rows":
        return measure_rows(job, selection, hardware)
    module = import_module("comparison." + MODULES[job.task.partition("-")[0]])
    return result_as_dict(module.run(job, selection, hardware))


def measure_machine(job: Job, hardware: "Hardware") -> dict[str, Any]:
    from comparison.machine import describe_machine, gemm_rate
    from comparison.measure import count_parameters

    return {
        "flops_per_second": gemm_rate(hardware),
        "parameters": count_parameters(job.location),
        "machine": describe_machine(hardware),
    }


def measure_rows(job: Job, selection: "Selection", hardware: "Hardware") -> dict[str, Any]:
    from comparison.data import full_rows
    from comparison.ours import run_rows
    from discord_lora.console import UserError

    rows = full_rows(selection.examples(), job.row_tokens)
    if not rows:
        raise UserError(f"--rows: no row of {job.row_tokens:,} tokens gets full; raise --messages.")
    return result_as_dict(run_rows(job, selection, hardware, rows))


if __name__ == "__main__":
    run_script(main)
