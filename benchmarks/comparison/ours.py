"""The project's own training, through the functions that `training/train_lora.py` runs.

The only place here that knows them: when the engine changes, this is what follows.
"""

from comparison.data import Selection, count_messages, count_tokens, messages_hash
from comparison.job import Job, Result
from comparison.measure import Stopwatch, held_out_loss, load_model
from discord_lora.conversations.dataset import Dataset
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import plan_training
from discord_lora.finetuning.loop import Events, fit, train_step
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.finetuning.training_state import TrainingState, build_state, make_accelerator
from discord_lora.hardware import Hardware


def prepare(
    job: Job, selection: Selection, hardware: Hardware, examples: list[TokenizedExample]
) -> TrainingState:
    """A run over `examples`, ready for its first step."""
    settings = selection.settings
    plan = plan_training(
        examples,
        messages_per_step=settings.messages_per_step,
        epochs=1.0,
        max_steps=0,
        seed=settings.seed,
    )
    model = TrainingModel(load_model(job.location, settings, hardware, examples))
    dataset = Dataset(selection.prompt_format.voice, len(selection.training), 0, examples, [])
    accelerator = make_accelerator(settings, hardware, "comparison")
    return build_state(model, plan, dataset, settings, accelerator, hardware)


def run(job: Job, selection: Selection, hardware: Hardware) -> Result:
    """All messages once, in the project's own steps."""
    examples = selection.examples()
    state = prepare(job, selection, hardware, examples)
    with Stopwatch(hardware) as stopwatch:
        fit(state, Events(save_every_steps=state.plan.steps))
    return Result(
        contender=job.task,
        messages=count_messages(examples),
        tokens=count_tokens(examples),
        steps=state.plan.steps,
        seconds=stopwatch.seconds,
        peak_bytes=stopwatch.peak_bytes,
        busy_cores=stopwatch.busy_cores,
        held_out_nats=held_out_loss(
            state.training_model.model, selection.held_out_examples(), hardware
        ),
        same_messages=messages_hash(examples),
        shape=f"packed up to {state.token_budget:,} tokens",
    )


def run_rows(
    job: Job, selection: Selection, hardware: Hardware, rows: list[list[TokenizedExample]]
) -> Result:
    """One optimizer step a full row: the rate at which rows of that length go through."""
    examples = [example for row in rows for example in row]
    state = prepare(job, selection, hardware, examples)
    with Stopwatch(hardware) as stopwatch:
        for step, row in enumerate(rows, start=1):
            train_step(state, Events(), step, row)
    return Result(
        contender=job.task,
        messages=count_messages(examples),
        tokens=count_tokens(examples),
        steps=len(rows),
        seconds=stopwatch.seconds,
        peak_bytes=stopwatch.peak_bytes,
        busy_cores=stopwatch.busy_cores,
        held_out_nats=None,
        same_messages=messages_hash(examples),
        shape=f"{len(rows)} rows of about {job.row_tokens:,} tokens",
    )
