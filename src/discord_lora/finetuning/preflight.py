"""Before the start: everything but training, so that what would end the night ends the evening.

`--check` does it at length and keeps nothing; every training does the same in short.
"""

import os
from dataclasses import dataclass
from datetime import datetime

import psutil
from accelerate import PartialState
from rich.console import Console

from discord_lora.analysis.plan.disk import Room, room_for
from discord_lora.analysis.plan.fights import Facts, doubts_of, problems_of
from discord_lora.analysis.plan.memory import optimizer_bytes
from discord_lora.analysis.plan.model_shapes import ModelShape
from discord_lora.base_model import check_memory, model_shape, reads_at_once
from discord_lora.console import UserError, plainly
from discord_lora.conversations.dataset import Dataset
from discord_lora.conversations.packing import TrainingPlan
from discord_lora.finetuning.checkpoints import newest_progress, saved_steps
from discord_lora.finetuning.continuing import settings_of_run, with_its_optimizer
from discord_lora.finetuning.forecast import loaded_state
from discord_lora.finetuning.keep_awake import kept_awake
from discord_lora.finetuning.out_of_memory import try_largest
from discord_lora.finetuning.prediction import doubts_when_loaded, foresee
from discord_lora.finetuning.preflight_page import (
    Memory,
    disk_problem,
    disk_text,
    machine_rows,
    show,
    size,
    time_text,
)
from discord_lora.finetuning.refusals import problems_with_folders, refusals
from discord_lora.finetuning.run_folder import RunFolder
from discord_lora.finetuning.training_state import optimizer_name
from discord_lora.hardware import Hardware, detect_hardware, driver_version
from discord_lora.settings import Settings


@dataclass(frozen=True, slots=True)
class Run:
    """What would be trained, before anything of it is loaded."""

    settings: Settings
    dataset: Dataset
    plan: TrainingPlan
    location: str
    """Of the base model."""
    folder: RunFolder
    fresh: bool = False
    """What the folder holds is to be deleted."""

    @property
    def is_finished(self) -> bool:
        return self.folder.is_finished and not self.fresh

    @property
    def goes_on(self) -> bool:
        return self.folder.holds_work and not (self.fresh or self.is_finished)

    @property
    def saved_steps(self) -> list[int]:
        """Of its checkpoints, whole or not; the first is written before the first step."""
        if self.fresh:
            return []
        return saved_steps(self.folder.checkpoints)

    @property
    def steps_done(self) -> int:
        return max(self.saved_steps, default=0)


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at a run found."""

    hardware: Hardware
    facts: Facts
    room: Room | None
    """None where the model's adapter cannot be counted beforehand."""
    problems: list[str]
    doubts: list[str]


def look(run: Run) -> Found:
    """Everything that can be known without loading the model; nothing is written.

    Raises:
        UserError: the model's configuration cannot be read.
    """
    settings, plan = run.settings, run.plan
    hardware = detect_hardware(PartialState().local_process_index)
    weights, room = None, None
    try:
        shape = model_shape(settings.base_model, run.location)
    except UserError:
        pass  # of an unusual kind: nothing is known of it beforehand
    else:
        weights = shape.weights
        room = room_of(run, shape, hardware)
    facts = Facts(
        is_cuda=hardware.is_cuda,
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        messages=plan.messages,
        held_out=sum(example.targets for example in run.dataset.validation_examples),
        longest=max(map(len, plan.examples)),
        weights=weights,
        positions=reads_at_once(run.location),
    )
    problems = [*problems_of(settings, facts), *problems_with_folders(settings)]
    doubts = [*doubts_of(settings, facts), *doubts_of_folders(run)]
    if run.goes_on:
        problems += refusals(lambda: check_optimizer(run, hardware))
    if PartialState().num_processes == 1:  # else each has a share only, and says so itself
        problems += refusals(lambda: check_memory(run.location, hardware, settings.quantization))
    if room is not None and (full := disk_problem(room, run.folder.path)):
        # A run that goes on may wait for room, as it would have; one to begin had better not.
        (doubts if run.saved_steps else problems).append(full)
    return Found(hardware, facts, room, problems, doubts)


def check_optimizer(run: Run, hardware: Hardware) -> None:
    """Raises UserError where a run that goes on could not go on with its optimizer here."""
    progress = newest_progress(run.folder.checkpoints)
    with_its_optimizer(run.settings, progress, on_cuda=hardware.is_cuda, sharded=False)


def room_of(run: Run, shape: ModelShape, hardware: Hardware) -> Room | None:
    """On the disk."""
    settings = run.settings
    try:
        optimizer = optimizer_name(settings, on_cuda=hardware.is_cuda, sharded=False)
    except UserError:
        optimizer = "adamw"
    try:
        return room_for(
            run.folder.path,
            shape.lora_weights(settings.lora_r, settings.lora_target_modules),
            optimizer_bytes(optimizer),
            settings.save_total_limit,
        )
    except OSError:
        return None


def doubts_of_folders(run: Run) -> list[str]:
    """Folders that lie in each other."""
    settings, folder = run.settings, run.folder.path.resolve()
    if settings.logs_dir.resolve() == settings.output_dir.resolve():
        return [
            f"LOGS_DIR and OUTPUT_DIR are both {settings.logs_dir}: --fresh deletes a run's "
            "history with its adapter. Set LOGS_DIR=logs."
        ]
    inside = {"LOGS_DIR": settings.logs_dir, "TRAINING_DATA_PATH": settings.training_data_path}
    return [
        f"{key}: {path} lies in the folder of this run, which --fresh deletes. Set another one."
        for key, path in inside.items()
        if path.resolve().is_relative_to(folder)
    ]


def preflight(run: Run, console: Console) -> None:
    """The short form, at the start of a training: doubts are said, problems stop it.

    Raises:
        UserError: all problems.
    """
    found = look(run)
    for doubt in found.doubts:
        console.print(f"warning: {doubt}", markup=False)
    if found.problems:
        raise UserError(*found.problems)


def check(run: Run, console: Console) -> None:
    """Print one page of everything, with the largest micro-batch tried for real; keep nothing.

    Raises:
        UserError: all problems.
    """
    found = look(run)
    show_what_was_found(run, found, console)
    if found.problems:
        show_doubts(found.doubts, console)
        raise UserError(*found.problems)
    if run.is_finished:
        plainly(console)("There is nothing to train: the adapter is finished.")
        return
    settings, hardware = run.settings, found.hardware
    progress = newest_progress(run.folder.checkpoints) if run.goes_on else {}
    state = loaded_state(
        settings_of_run(settings, progress, on_cuda=hardware.is_cuda, sharded=False),
        run.dataset,
        run.plan,
        run.location,
        hardware,
        lambda sentence: show(console, "", sentence),
    )
    first_step = min(run.steps_done, run.plan.steps)
    tokens = try_largest(
        state,
        lambda _what, sentence: show(console, "", sentence),
        first_step,
    )
    used = Memory(hardware.used_bytes(), hardware.total_bytes)
    show(console, "largest", f"a micro-batch of {tokens:,} tokens went forth and back: {used} used")
    night = foresee(state, settings, hardware, first_step)
    taken = None if night is None else night.as_set_time
    steps = run.plan.steps - first_step
    show(
        console,
        "time",
        "will show after the first steps: it cannot be modelled for this model, or here"
        if taken is None
        else time_text(taken, steps, datetime.now()),
    )
    show(console, "peak memory", f"{size(hardware.peak_bytes())}, by that micro-batch")
    with kept_awake(lambda sentence: show(console, "sleep", sentence), wanted=settings.keep_awake):
        pass
    more = doubts_when_loaded(state, settings, hardware, taken, tokens)
    show_doubts([*found.doubts, *more], console)
    state.accelerator.end_training()
    plainly(console)("ready: run the same command without --check")


def show_what_was_found(run: Run, found: Found, console: Console) -> None:
    """The rows that need no loaded model."""
    hardware, facts = found.hardware, found.facts
    available = psutil.virtual_memory()
    rows = machine_rows(
        hardware,
        driver_version() if hardware.is_cuda else "",
        Memory(hardware.free_bytes(), hardware.total_bytes),
        Memory(available.available, available.total),
        on_windows=os.name == "nt",
    )
    weights = f", {facts.weights / 1e9:.2f} billion weights" if facts.weights else ""
    data = f"{run.settings.training_data_path} is readable; the longest example has"
    rows += [
        ("data", f"{data} {facts.longest:,} tokens"),
        ("model", f"{run.settings.base_model} is readable{weights}"),
        ("run", state_of(run)),
        ("disk", disk_text(found.room) if found.room else "what will be wanted is not known"),
    ]
    for label, text in rows:
        show(console, label, text)


def state_of(run: Run) -> str:
    """Whether it starts or goes on."""
    path = run.folder.path
    if run.is_finished:
        return f"{path} is finished (--fresh starts over)"
    if run.fresh and run.folder.holds_work:
        return f"{path} is deleted and starts over (--fresh)"
    done = run.steps_done
    return f"{path} goes on after step {done:,}" if done else f"{path} starts"


def show_doubts(doubts: list[str], console: Console) -> None:
    for doubt in doubts:
        show(console, "warning", doubt)
