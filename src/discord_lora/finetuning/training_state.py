"""What one run works on: built from settings and model, saved and restored as a checkpoint."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor
from transformers import get_scheduler

from discord_lora.analysis.plan.memory import MemoryPlan, optimizer_bytes, usual_optimizer
from discord_lora.console import UserError
from discord_lora.conversations.dataset import Dataset
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import (
    MicroBatch,
    TrainingPlan,
    collate,
    idle_batch,
    shares,
)
from discord_lora.finetuning.activations import checkpoint_layers, decide_memory
from discord_lora.finetuning.checkpoints import Checkpoint
from discord_lora.finetuning.fast_paths import Paths, choose_paths
from discord_lora.finetuning.mishaps import (
    LOWER_RATE,
    LOWER_SCALE,
    Incident,
    Mishaps,
    name_of,
    why_unreadable,
)
from discord_lora.finetuning.processes import (
    is_sharded,
    load_optimizer_state,
    prepare_sharding,
    sharded_like,
    whole,
    whole_optimizer_state,
)
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.hardware import (
    Hardware,
    is_card_failure,
    memory_must_suffice,
    release_freed_memory,
)
from discord_lora.settings import Settings

NO_MEMORY_TO_COPY = (
    "Memory ran out while the weights were copied; close other programs. The same command goes on "
    "from the last checkpoint."
)
NO_MEMORY_TO_BEGIN = (
    "BASE_MODEL: the model is loaded, and gradients with a first pass of a few tokens do not fit "
    "into the memory that is left; close other programs, set QUANTIZATION=nf4 or choose a smaller "
    "model."
)


@dataclass(slots=True)
class TrainingState:
    """What one run works on."""

    accelerator: Accelerator
    model: Any
    """The training model, as accelerate prepared it."""
    training_model: TrainingModel
    """Itself, without what accelerate put around it: to unwrap it walks all its modules."""
    optimizer: Any
    scheduler: Any
    plan: TrainingPlan
    validation: Sequence[TokenizedExample]
    memory: MemoryPlan
    """As it was decided before the start."""
    token_budget: int
    """Tokens a micro-batch; halved when memory runs out."""
    packing: bool = True
    max_grad_norm: float = 1.0
    optimizer_name: str = "adamw"
    """What OPTIMIZER=auto came to."""
    optimizer_bytes: float = 8.0
    """That the optimizer keeps for each trainable number."""
    mishaps: Mishaps = field(default_factory=Mishaps)

    def trainable(self) -> dict[str, Tensor]:
        return self.training_model.trainable()

    @memory_must_suffice(NO_MEMORY_TO_COPY)
    def whole_weights(self) -> dict[str, Tensor]:
        """The trainable weights on the CPU; all processes have to ask.

        Raises:
            UserError: there is no memory for them.
        """
        weights = {name: whole(p.detach()) for name, p in self.trainable().items()}
        return {name: weight.cpu().contiguous() for name, weight in weights.items()}

    def usable(
        self, examples: Sequence[TokenizedExample], incident: Incident
    ) -> list[TokenizedExample]:
        """Those of the examples that can be learned from; what cannot be read is set aside.

        Raises:
            UserError: too many cannot be read.
        """
        vocabulary = self.training_model.causal_model.get_input_embeddings().weight.shape[0]
        good = []
        for example in examples:
            if name_of(example) in self.mishaps.set_aside:
                continue
            if reason := why_unreadable(example, vocabulary):
                self.mishaps.put_aside(example, reason, len(self.plan.examples), incident)
            else:
                good.append(example)
        return good

    def micro_batches(self, examples: Sequence[TokenizedExample]) -> list[MicroBatch]:
        """This process's share of the examples, packed and on their way to its device.

        As many for each process: they meet in the passes, where gradients are exchanged and
        sharded weights gathered.
        """
        processes = self.accelerator.num_processes
        rows = shares(examples, processes, self.token_budget, packing=self.packing)
        batches = [collate(row) for row in rows[self.accelerator.process_index]]
        batches += [idle_batch(examples) for _ in range(max(map(len, rows)) - len(batches))]
        return [batch.to(self.accelerator.device) for batch in batches]


def make_accelerator(settings: Settings, hardware: Hardware, run: str | None) -> Accelerator:
    """Mixed precision, devices, processes and TensorBoard are accelerate's.

    Without a `run` nothing is written.
    """
    logging_dir = settings.logs_dir / "tensorboard"
    try:
        if run is not None:
            logging_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"LOGS_DIR: cannot write {logging_dir} ({error}).") from None
    accelerator = Accelerator(
        mixed_precision=hardware.precision,
        cpu=not hardware.is_cuda,
        log_with=None if run is None else "tensorboard",
        project_config=ProjectConfiguration(
            project_dir=str(settings.logs_dir), logging_dir=str(logging_dir)
        ),
    )
    prepare_sharding(accelerator, settings, hardware.dtype)
    if hardware.is_cuda:
        torch.set_float32_matmul_precision("high")  # TF32 where the card has it
    hardware.stay_on_the_card()
    if run is not None:
        try:
            accelerator.init_trackers(run)
        except OSError:  # a run that goes on with a full disk: TensorBoard is not worth the night
            accelerator.trackers = []
    return accelerator


def build_state(
    model: TrainingModel,
    plan: TrainingPlan,
    dataset: Dataset,
    settings: Settings,
    accelerator: Accelerator,
    hardware: Hardware,
    say: Callable[[str], None] = lambda _sentence: None,
) -> TrainingState:
    """Everything the loop works on: the model's fastest way, and pieces that fit into memory."""
    trainable = list(model.trainable().values())
    optimizer_kind = optimizer_name(
        settings, on_cuda=hardware.is_cuda, sharded=is_sharded(accelerator)
    )
    optimizer = make_optimizer(trainable, settings, optimizer_kind)
    scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=round(plan.steps * settings.warmup_ratio),
        num_training_steps=plan.steps,
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    with memory_must_suffice(NO_MEMORY_TO_BEGIN):
        paths = choose_paths(model, plan.examples)
        packing = settings.packing and paths.packing
        memory = decide_memory(
            model, plan, settings, accelerator, hardware, optimizer_kind, packing=packing
        )
        checkpoint_layers(model, memory.checkpointed)
        release_freed_memory()
        keep_gradients(model.trainable().values())
    for sentence in (*what_is_general(paths), str(memory)):
        say(sentence)
    return TrainingState(
        accelerator=accelerator,
        model=prepared,
        training_model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        plan=plan,
        validation=dataset.validation_examples,
        memory=memory,
        token_budget=memory.token_budget,
        packing=packing,
        max_grad_norm=settings.max_grad_norm,
        optimizer_name=optimizer_kind,
        optimizer_bytes=optimizer_bytes(optimizer_kind),
    )


def keep_gradients(parameters: Iterable[Tensor]) -> None:
    """Give each parameter its gradient before there is anything to learn; steps only empty it.

    Made anew in each step, gradients would lie between the activations of its first micro-batch,
    and the memory around them would be of no use to the next one (benchmarks/LOG.md). A weight that
    a step does not meet, such as an expert's that no token went to, has a gradient of zero.
    """
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def make_optimizer(parameters: list[Any], settings: Settings, name: str) -> Any:
    """AdamW of torch, or the 8-bit ones of bitsandbytes."""
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(parameters, **options)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit  # noqa: PLC0415 - slow import

    kinds = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}
    return kinds[name](parameters, **options)


def optimizer_name(settings: Settings, *, on_cuda: bool, sharded: bool) -> str:
    """What OPTIMIZER means on this machine.

    Raises:
        UserError: an 8-bit optimizer without a CUDA card, or for sharded weights.
    """
    name = settings.optimizer
    if name == "auto":
        return usual_optimizer(on_cuda=on_cuda and not sharded)
    if name != "adamw" and sharded:
        raise UserError(f"OPTIMIZER: {name} cannot be sharded (FSDP); set OPTIMIZER=auto.")
    if name != "adamw" and not on_cuda:
        raise UserError(f"OPTIMIZER: {name} needs a CUDA card; set OPTIMIZER=adamw or auto.")
    return name


def what_is_general(paths: Paths) -> list[str]:
    """What this kind of model cannot have, in words; nothing for the usual ones."""
    sentences = []
    if not paths.packing:
        sentences.append(
            "This kind of model cannot keep packed conversations apart: one at a time."
        )
    if paths.general:
        pieces = ", ".join(paths.general)
        sentences.append(f"This kind of model computes differently in: {pieces}. The slower way.")
    return sentences


def snapshot(state: TrainingState, step: int, progress: dict[str, Any]) -> Checkpoint:
    """Everything that `restore` needs to go on after `step`; all processes have to ask."""
    scaler = state.accelerator.scaler
    if torch.cuda.is_available():
        # Paged optimizer states live in memory that the host may read only while the card rests.
        torch.cuda.synchronize()
    return Checkpoint(
        step=step,
        weights=state.whole_weights(),
        optimizer=whole_optimizer_state(state.optimizer),
        scheduler=state.scheduler.state_dict(),
        scaler=scaler.state_dict() if scaler is not None else {},
        progress=progress,
    )


@memory_must_suffice(NO_MEMORY_TO_COPY)
def restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a run; see `foreign_content_explained`.

    Raises:
        UserError: there is no memory for it.
    """
    with torch.no_grad():
        for name, parameter in state.trainable().items():
            parameter.copy_(sharded_like(parameter, checkpoint.weights[name]))
    _check_keys(state.optimizer.state_dict()["param_groups"], checkpoint.optimizer["param_groups"])
    load_optimizer_state(state.optimizer, checkpoint.optimizer)
    for parameter, values in state.optimizer.state.items():
        moments = [values[name] for name in ("exp_avg", "exp_avg_sq") if name in values]
        if any(moment.shape != parameter.shape for moment in moments):
            raise ValueError("the optimizer's state is that of other weights")
    _check_keys([state.scheduler.state_dict()], [checkpoint.scheduler])
    state.scheduler.load_state_dict(checkpoint.scheduler)
    if state.accelerator.scaler is not None and checkpoint.scaler:
        state.accelerator.scaler.load_state_dict(checkpoint.scaler)
    state.mishaps = Mishaps.of(checkpoint.progress)


def lower_rate(state: TrainingState) -> float:
    """From here on a lower learning rate, and with fp16 a lower scale; returns the rate."""
    state.scheduler.base_lrs = [rate * LOWER_RATE for rate in state.scheduler.base_lrs]
    for group in state.optimizer.param_groups:
        group["lr"] *= LOWER_RATE
    state.scheduler._last_lr = [group["lr"] for group in state.optimizer.param_groups]
    scaler = state.accelerator.scaler
    if scaler is not None:
        scaler.load_state_dict({**scaler.state_dict(), "scale": scaler.get_scale() * LOWER_SCALE})
    return float(state.scheduler.base_lrs[0])


def _check_keys(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    if [set(it) for it in ours] != [set(it) for it in theirs]:
        raise ValueError("the optimizer or the schedule is another one")


@contextmanager
def foreign_content_explained(step: int) -> Iterator[None]:
    """Raises UserError where a whole checkpoint holds what another version wrote."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        if is_card_failure(error):
            raise
        raise UserError(
            f"The checkpoint after step {step:,} is whole, but another version wrote it ({error}); "
            "go on with the version that began this run, or add --fresh to start over."
        ) from error
