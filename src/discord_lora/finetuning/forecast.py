"""From settings and data to the plan of the night: what would be trained, on what, for how long."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from discord_lora.analysis.plan.cards import find_card, is_cpu
from discord_lora.analysis.plan.deadline import plan_for
from discord_lora.analysis.plan.estimates import Fit, Machine, fit_data
from discord_lora.analysis.plan.memory import MemoryPlan
from discord_lora.analysis.plan.model_shapes import MODELS, ModelShape
from discord_lora.analysis.plan.night import (
    NightPlan,
    Workday,
    plan_night,
    workday,
)
from discord_lora.analysis.plan.plan_options import Asked
from discord_lora.analysis.plan.plan_page import show_deadline, show_lines, show_plan
from discord_lora.analysis.plan.time_model import Work
from discord_lora.analysis.plan.timings import Timing, add_timing, newest_timing
from discord_lora.base_model import (
    fetch_weights,
    load_base_model,
    load_tokenizer,
    model_shape,
    weights_are_here,
)
from discord_lora.console import UserError, make_console, make_progress, plainly
from discord_lora.conversations.dataset import Dataset
from discord_lora.conversations.dataset_cache import open_dataset
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import TrainingPlan, pack, plan_training
from discord_lora.conversations.prompt_format import Voice
from discord_lora.env_file import write_env
from discord_lora.finetuning.adapter import attach_adapter, steps_already_seen
from discord_lora.finetuning.calibration import calibrate
from discord_lora.finetuning.checkpoints import saved_steps
from discord_lora.finetuning.processes import is_sharded
from discord_lora.finetuning.run_folder import choose_run_folder, fingerprint
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.finetuning.training_state import (
    TrainingState,
    build_state,
    make_accelerator,
)
from discord_lora.hardware import Hardware, detect_hardware, memory_must_suffice, the_cpu
from discord_lora.model_location import locate_base_model
from discord_lora.sample import SAMPLE_MODEL_NAME
from discord_lora.settings import Settings, set_in_environment


def plan_the_night(asked: Asked, settings: Settings, console: Console) -> None:
    """Show memory, choices and what ends in time; if asked for, write the lines for .env.

    Raises:
        UserError: as `forecast`, or .env cannot be written, or would stop an unfinished run.
    """
    plan = forecast(settings, asked, console)
    now = datetime.now().astimezone()  # timing the machine may have taken minutes
    seconds = asked.seconds_left(now)
    show_plan(
        plan,
        settings,
        console,
        classic=asked.seconds_per_step or 0.0,
        can_be_filtered=asked.can_be_filtered,
    )
    chosen = plan.recommendation.strategy
    if seconds is not None:
        deadline = plan_for(plan, seconds, settings.messages_per_step)
        show_deadline(deadline, console, now, can_calibrate=not asked.gpu)
        if deadline is None and asked.write_env is not None:
            raise UserError(f"Nothing is written into {asked.write_env}: allow more time.")
        if deadline is None:
            return
        chosen = deadline.strategy
    lines = {**asked.given, **chosen.env(plan.learning_rate)}
    show_lines(lines, console)
    if asked.write_env is None:
        return
    if plan.unfinished and change_anything(lines, settings):
        raise UserError(
            f"Nothing is written into {asked.write_env}: with it the unfinished run could not go "
            "on; finish that one first, or set another RUN_NAME."
        )
    write_lines(asked.write_env, lines, console)


def change_anything(lines: Mapping[str, str], settings: Settings) -> bool:
    """Whether these lines of `.env` say something else than the settings."""
    wanted = {key.lower(): value for key, value in lines.items()}
    return settings != Settings.model_validate({**settings.model_dump(), **wanted})


def write_lines(path: Path, lines: dict[str, str], console: Console) -> None:
    """Put the plan into `.env`. Raises UserError when it cannot be written."""
    backup = write_env(path, lines)
    kept = f"; as it was: {backup}" if backup else ""
    console.print(f"written into {path}{kept}", markup=False)
    if above := set_in_environment(lines):
        console.print(
            f"{' and '.join(above)}: set in the environment, which goes before {path}; "
            "unset there what the plan is to decide.",
            markup=False,
        )


def forecast(settings: Settings, asked: Asked, console: Console) -> NightPlan:
    """Plan the night that these settings would give.

    Raises:
        UserError: data or model cannot be had, or memory runs out while something is timed.
    """
    card = find_card(asked.gpu) if asked.gpu else None
    say = plainly(console)
    dataset = open_with_any_tokenizer(settings, say)
    hardware = the_cpu() if is_cpu(asked.gpu) else detect_hardware()
    run = plan_as_set(settings, dataset)
    location = locate_base_model(settings.base_model, say)
    shape = model_shape(settings.base_model, location)
    if asked.calibrate:
        add_timing(settings.logs_dir, in_a_process_of_its_own(settings, console))
    # After timing, which shall not find the card partly taken by what is measured here.
    with memory_must_suffice(f"{hardware.name} has no memory left to plan with; free some of it."):
        machine = Machine.of_card(card) if card else hardware.machine()
    at_hand = card is None or card == find_card(hardware.name)
    timing = newest_timing(settings.logs_dir, hardware.description, settings) if at_hand else None
    night = night_of(
        settings,
        run,
        dataset.validation_examples,
        shape,
        machine,
        timing=timing,
        seconds_per_step=asked.seconds_per_step,
        looks_filtered=asked.looks_filtered,
    )
    return replace(
        night,
        unfinished=unfinished_run(settings, dataset.voice),
        is_to_be_fetched=not weights_are_here(location),
    )


def unfinished_run(settings: Settings, voice: Voice) -> str:
    """What to know of a run that stands where the planned one would go; empty if none does."""
    # No data have this fingerprint: a finished run is passed over, as it is with new settings.
    folder = choose_run_folder(settings, voice, "", fresh=True)
    if folder.is_finished or not folder.holds_work:
        return ""
    step = max(saved_steps(folder.checkpoints), default=0)
    return (
        f"{folder.path} holds an unfinished run, saved after step {step:,}, which goes on only "
        "with its own settings: run training/train_lora.py with them, or set RUN_NAME for a new "
        "one."
    )


def night_of(
    settings: Settings,
    run: TrainingPlan,
    held_out: Sequence[TokenizedExample],
    shape: ModelShape,
    machine: Machine,
    *,
    timing: Timing | None,
    memory: MemoryPlan | None = None,
    first_step: int = 0,
    seconds_per_step: float | None = None,
    looks_filtered: bool = False,
) -> NightPlan:
    """Plan the night of a run whose data are at hand.

    Args:
        settings: of the run.
        run: its steps.
        held_out: examples whose loss is measured.
        shape: the model.
        machine: where it runs.
        timing: what was found there before.
        memory: as it was decided on the loaded model; None: as it would be.
        first_step: steps that are done already.
        seconds_per_step, looks_filtered: as `Asked` has them.
    """
    epoch = replace(run, steps=run.steps_per_epoch, skip_steps=0)
    made, day = look_ahead(settings, epoch, held_out, shape, machine, memory)
    steps = steps_in_rows(settings, run, made.plan.token_budget, first_step)
    rows = [row for step in steps for row in step]
    return plan_night(
        settings,
        day,
        made,
        messages=epoch.messages,
        as_set=Work.of(rows, steps=run.steps - first_step),
        largest_row=max((sum(map(len, row)) for row in rows), default=0),
        first_step=first_step,
        timing=timing,
        seconds_per_step=seconds_per_step,
        looks_filtered=looks_filtered,
    )


def open_with_any_tokenizer(settings: Settings, say: Callable[[str], None]) -> Dataset:
    """The tokenized data; for a known model that is out of reach, by the sample's tokenizer."""
    try:
        tokenizer = load_tokenizer(locate_base_model(settings.base_model, say))
    except UserError:
        if settings.base_model not in {shape.name for shape in MODELS}:
            raise
        say(f"{settings.base_model} is out of reach: tokens are counted as the sample model does.")
        settings = settings.model_copy(update={"base_model": SAMPLE_MODEL_NAME})
        tokenizer = load_tokenizer(locate_base_model(SAMPLE_MODEL_NAME, say))
    return open_dataset(settings, lambda: tokenizer, say)


def plan_as_set(settings: Settings, dataset: Dataset) -> TrainingPlan:
    """The run that the settings ask for."""
    return plan_training(
        dataset.training_examples,
        messages_per_step=settings.messages_per_step,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
        skip_steps=steps_already_seen(settings, fingerprint(dataset.training_examples)),
    )


def look_ahead(
    settings: Settings,
    epoch: TrainingPlan,
    held_out: Sequence[TokenizedExample],
    shape: ModelShape,
    machine: Machine,
    memory: MemoryPlan | None = None,
) -> tuple[Fit, Workday]:
    """How the model fits, and one epoch's work."""
    tokens = [sum(map(len, examples)) for examples in epoch.walk()]
    made = fit_data(shape, machine, settings, tokens, max(map(len, epoch.examples)))
    if memory is not None:
        activations = memory.expected_bytes - memory.activations.fixed
        made = replace(made, plan=memory, use=replace(made.use, activations=activations))
    budget = made.plan.token_budget
    day = workday(
        steps_in_rows(settings, epoch, budget),
        pack(held_out, budget, packing=settings.packing),
        settings.save_every_steps,
        eval_every_steps=settings.eval_every_steps,
        sample_answers=settings.sample_answers,
    )
    return made, day


def steps_in_rows(
    settings: Settings, plan: TrainingPlan, token_budget: int, first_step: int = 0
) -> Iterator[list[list[TokenizedExample]]]:
    """The micro-batches of each step, as training will pack them."""
    for examples in plan.walk(first_step):
        yield pack(examples, token_budget, packing=settings.packing)


def in_a_process_of_its_own(settings: Settings, console: Console) -> Timing:
    """As training would be: neither the report's memory nor its time counts."""
    plainly(console)(f"loading {settings.base_model} to time it")
    # The sample model is fetched here, and is no part of the start-up that is timed.
    locate_base_model(settings.base_model, plainly(console))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(calibrated, settings, console.quiet).result()
        except BrokenProcessPool:
            raise UserError(
                "--calibrate: the process that timed the model was ended from outside, most likely "
                "for want of memory; choose a smaller BASE_MODEL, or plan without --calibrate."
            ) from None


def calibrated(settings: Settings, quiet: bool) -> Timing:
    """Load the model as training would, and time it."""
    console = make_console(quiet=quiet)
    say = plainly(console)
    location = locate_base_model(settings.base_model, say)
    dataset = open_dataset(settings, lambda: load_tokenizer(location), say)
    # Of the run as it is set: how much its largest micro-batch takes is measured, not inferred.
    plan = plan_as_set(settings, dataset)
    hardware = detect_hardware()
    fetching_seconds = fetch_weights(location, hardware, settings.quantization)
    state = loaded_state(settings, dataset, plan, location, hardware, say)
    with make_progress(console) as progress:
        bar = progress.add_task("timing micro-batches, percent", total=100)
        return calibrate(
            state,
            settings,
            hardware,
            lambda share: progress.update(bar, completed=100 * share),
            fetching_seconds=fetching_seconds,
        )


def loaded_state(
    settings: Settings,
    dataset: Dataset,
    plan: TrainingPlan,
    location: str,
    hardware: Hardware,
    say: Callable[[str], None],
) -> TrainingState:
    """What training would work on, of which nothing will be kept.

    Raises:
        UserError: model, adapter settings or memory do not fit.
    """
    accelerator = make_accelerator(settings, hardware, None)
    sharded_over = accelerator.num_processes if is_sharded(accelerator) else 0
    model = load_base_model(location, hardware, settings.quantization, sharded_over=sharded_over)
    model = TrainingModel(attach_adapter(model, settings))
    return build_state(model, plan, dataset, settings, accelerator, hardware, say)
