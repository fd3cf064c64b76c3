"""What a run that goes on takes from its checkpoint, whatever folder and machine are like now."""

from collections.abc import Mapping
from typing import Any, get_args

from discord_lora.console import UserError
from discord_lora.finetuning.run_folder import IDENTITY_FILE, RunFolder
from discord_lora.finetuning.training_state import optimizer_name
from discord_lora.settings import Settings

Progress = Mapping[str, Any]
"""A checkpoint's; empty for a run that begins."""

OPTIMIZERS = get_args(Settings.model_fields["optimizer"].annotation)


def settings_of_run(
    settings: Settings, progress: Progress, *, on_cuda: bool, sharded: bool
) -> Settings:
    """With what `auto` had come to, for what cannot change in the middle of a run.

    Raises:
        UserError: its optimizer does not work on this machine.
    """
    return with_its_optimizer(
        with_its_token_budget(settings, progress), progress, on_cuda=on_cuda, sharded=sharded
    )


def with_its_token_budget(settings: Settings, progress: Progress) -> Settings:
    """As long as the setting is the same, the run goes on with the budget that it had found.

    Whatever is free now: other rows would sum in another order, and with another program open the
    same run would end with other bits. How many layers are checkpointed is decided anew: it
    changes none.
    """
    budget = progress.get("token_budget")
    was_set = progress.get("token_budget_set", "auto")
    if settings.max_tokens_per_microbatch != was_set or not isinstance(budget, int):
        return settings
    return settings.model_copy(update={"max_tokens_per_microbatch": budget})


def with_its_optimizer(
    settings: Settings, progress: Progress, *, on_cuda: bool, sharded: bool
) -> Settings:
    """OPTIMIZER=auto means what it meant before: another one cannot read that one's state.

    Raises:
        UserError: that one does not work on this machine.
    """
    optimizer = progress.get("optimizer")
    if settings.optimizer != "auto" or optimizer not in OPTIMIZERS:
        return settings
    kept = settings.model_copy(update={"optimizer": optimizer})
    try:
        optimizer_name(kept, on_cuda=on_cuda, sharded=sharded)
    except UserError:
        why = (
            "which cannot be sharded (FSDP): go on without FSDP"
            if sharded
            else "which needs a CUDA card, and torch sees none now: see to the driver "
            "(nvidia-smi), then run the same command again"
        )
        raise UserError(
            f"This run was on {progress.get('device')} with the optimizer {optimizer}, {why}. "
            "Or add --fresh to start over."
        ) from None
    return kept


def check_identity(folder: RunFolder, progress: Progress) -> None:
    """Raises UserError where a checkpoint is not of the run that the folder's identity names."""
    ours, theirs = folder.identity_hash, progress.get("identity")
    if ours and theirs and ours != theirs:  # else one of them could not be read
        raise UserError(
            f"{folder.checkpoints} holds checkpoints of another run than {IDENTITY_FILE} beside "
            "them names; set another RUN_NAME, or add --fresh to delete the folder and start over."
        )
