"""Where BASE_MODEL is, found without loading anything of it."""

from collections.abc import Callable
from pathlib import Path

from discord_lora.console import UserError
from discord_lora.sample import is_sample, sample_model_folder

Report = Callable[[str], None]


def locate_base_model(name: str, report: Report) -> str:
    """The folder or Hugging Face name behind BASE_MODEL; the sample model is fetched once.

    Raises:
        UserError: it looks like a folder, and there is none.
    """
    if is_sample(name):
        return str(sample_model_folder(Path.cwd(), report))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1:
        raise UserError(
            f"BASE_MODEL: there is no folder {name}; write a Hugging Face name such as "
            "mistralai/Mistral-7B-Instruct-v0.3, the folder of a downloaded model, or 'sample'."
        )
    return name
