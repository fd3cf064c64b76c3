"""Everything that is wrong comes at once: whoever starts a night wants to correct it once."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from discord_lora.analysis.plan.disk import nearest_folder
from discord_lora.base_model import load_tokenizer
from discord_lora.console import UserError
from discord_lora.finetuning.adapter import adapter_to_continue
from discord_lora.messages.opt_out import read_opt_outs
from discord_lora.messages.training_data import read_training_data
from discord_lora.model_location import locate_base_model
from discord_lora.sample import is_sample
from discord_lora.settings import Settings


@contextmanager
def all_problems_at_once(settings: Settings, *, fresh: bool) -> Iterator[None]:
    """What ends the work within says everything else that is wrong, too.

    Raises:
        UserError: as the work within; and before it, if --fresh would delete what is to be read.
    """
    if fresh and (deleted := what_fresh_would_delete(settings)):
        raise UserError(*deleted)
    try:
        yield
    except UserError as error:
        others = [*problems_with_folders(settings), *what_cannot_be_read(settings)]
        raise UserError(*dict.fromkeys([*error.problems, *others])) from None


def what_fresh_would_delete(settings: Settings) -> list[str]:
    """Sentences on what lies in the folder of RUN_NAME and does not belong to that run."""
    if not settings.run_name:
        return []
    folder = (settings.output_dir / settings.run_name).resolve()
    needed = {
        "CONTINUE_FROM": settings.continue_from and adapter_to_continue(settings),
        "TRAINING_DATA_PATH": settings.training_data_path,
        "LOGS_DIR": settings.logs_dir,
        "BASE_MODEL": Path(settings.base_model),
    }
    return [
        f"{key}: {path} lies in the folder that --fresh deletes; set another RUN_NAME."
        for key, path in needed.items()
        if path and path.exists() and path.resolve().is_relative_to(folder)
    ]


def problems_with_folders(settings: Settings) -> list[str]:
    """Folders that cannot be written. Nothing is written to find out."""
    problems = []
    for key, path in (("OUTPUT_DIR", settings.output_dir), ("LOGS_DIR", settings.logs_dir)):
        nearest = nearest_folder(path)
        if not nearest.is_dir():
            problems.append(f"{key}: {nearest} is a file; choose another folder.")
        elif not os.access(nearest, os.W_OK):
            problems.append(f"{key}: {nearest} may not be written; choose another folder.")
    return problems


def what_cannot_be_read(settings: Settings) -> list[str]:
    """Whether data and model are there, each by itself. The sample model is not fetched for it."""

    def read_model() -> None:
        if not is_sample(settings.base_model):
            load_tokenizer(locate_base_model(settings.base_model, lambda _line: None))

    def read_data() -> None:
        read_training_data(settings.training_data_path, read_opt_outs(settings.opt_out_file))

    return [problem for read in (read_data, read_model) for problem in refusals(read)]


def refusals(work: Callable[[], object]) -> tuple[str, ...]:
    """The problems that it raises; none if it does its work."""
    try:
        work()
    except UserError as error:
        return error.problems
    return ()
