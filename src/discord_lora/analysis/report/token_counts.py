"""Tokens of each message, with the model's own tokenizer and without torch or transformers."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from tokenizers import Tokenizer

from discord_lora.analysis.report.measure import CountTokens
from discord_lora.console import UserError, plainly
from discord_lora.model_location import locate_base_model
from discord_lora.sample import is_sample

_BATCH = 5_000
_FILE = "tokenizer.json"


def find_token_counter(base_model: str, console: Console) -> CountTokens | None:
    """None, and a line that says why, when the model has no tokenizer within reach.

    Raises:
        UserError: as `locate_base_model`, but for a sample model that cannot be fetched.
    """
    say = plainly(console)
    if not is_sample(base_model):
        locate_base_model(base_model, say)
    try:
        return token_counter(locate_base_model(base_model, say))
    except UserError as error:
        console.print(f"tokens are not counted. {error}", style="yellow", markup=False)
        return None


def token_counter(location: str) -> CountTokens:
    """A function that counts the tokens of texts, without what surrounds a turn.

    `location` is a folder or a Hugging Face name. Raises UserError when it has no fast tokenizer
    (`tokenizer.json`) or cannot be reached.
    """
    tokenizer = _load(location)
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def count(texts: pl.Series) -> npt.NDArray[np.int64]:
        counts = np.zeros(len(texts), np.int64)
        for begin in range(0, len(texts), _BATCH):
            batch = texts.slice(begin, _BATCH).to_list()
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            counts[begin : begin + len(batch)] = [len(it) for it in encoded]
        return counts

    return count


def _load(location: str) -> Tokenizer:
    path = Path(location, _FILE)
    if Path(location).is_dir():
        if not path.is_file():
            raise UserError(f"BASE_MODEL: {location} has no {_FILE} to count tokens with.")
    else:
        path = _download(location)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception for every damage
        raise UserError(f"BASE_MODEL: {path} cannot be read as a tokenizer ({error}).") from None


def _download(name: str) -> Path:
    from httpx2 import HTTPError  # noqa: PLC0415
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow, and often not needed

    try:
        return Path(hf_hub_download(name, _FILE))
    except (HTTPError, OSError, ValueError):
        raise UserError(
            f"BASE_MODEL: the tokenizer of {name} is not on this computer and cannot be fetched."
        ) from None
