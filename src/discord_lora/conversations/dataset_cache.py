"""Datasets that were made before, so that the next run on the same data starts at once.

    data/cache/training_data.jsonl-<data>-<rest>.npz

`<data>` is a hash of what the file holds, `<rest>` one of all else that decides which tokens come
out: settings, tokenizer, libraries, and this project's own code, so that nobody has to remember
to raise a number after a change. An entry that is torn or damaged counts as absent, and where
nothing can be written the work goes on without a cache. Nothing that is loaded can execute code.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from discord_lora.console import UserError
from discord_lora.conversations.dataset import Dataset, make_dataset
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.prompt_format import PROMPT_FORMAT_VERSION, Voice
from discord_lora.messages.opt_out import read_opt_outs
from discord_lora.messages.output import AtomicFile, file_hash
from discord_lora.messages.training_data import TrainingData, read_training_data
from discord_lora.settings import Settings

CACHE_VERSION = 1
"""Raised when an entry's arrays change."""

KEEP = 3
"""Entries that stay for one state of the data: the server's voice, a persona, one more try."""

DATASET_SETTINGS = (
    "training_data_path",
    "persona",
    "bot_name",
    "system_prompt",
    "conversation_gap_minutes",
    "validation_fraction",
    "max_validation_messages",
    "max_seq_length",
    "context_tokens",
    "messages_per_step",
)
"""All settings that `make_dataset` reads; a test holds it to that."""

_ROOMS = ("conversations", "messages")
"""Whose code decides what a dataset holds."""

Arrays = dict[str, NDArray[Any]]


def open_dataset(
    settings: Settings, open_tokenizer: Callable[[], Any], report: Callable[[str], None]
) -> Dataset:
    """The dataset of TRAINING_DATA_PATH, from the cache or made and put there.

    Args:
        settings: those in DATASET_SETTINGS matter.
        open_tokenizer: called once, after the data were found to be readable.
        report: gets the reader's remarks, also those of the run that filled the cache.

    Raises:
        UserError: no readable data, an unknown persona, or nothing to train on.
    """

    @lru_cache
    def read() -> TrainingData:
        data = read_training_data(settings.training_data_path, read_opt_outs(settings.opt_out_file))
        for line in data.remarks():
            report(line)
        return data

    cache = DatasetCache(settings.training_data_path)
    if not cache.knows_the_data():
        read()  # before a model is fetched in vain
    dataset = cache.recall_or_make(settings, open_tokenizer(), read)
    if not read.cache_info().misses:
        for line in dataset.remarks:
            report(line)
    return dataset


class DatasetCache:
    """The entries for one training data file, in `cache/` beside it.

    Made before the file is read: its state at that moment is what the entries are known by.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.parent / "cache"
        self.data_hash = file_hash(path)

    def knows_the_data(self) -> bool:
        """True if there is an entry for what the file holds now: it was readable before."""
        return any(data == self.data_hash for data, _ in self._entries())

    def recall_or_make(
        self, settings: Settings, tokenizer: Any, read: Callable[[], TrainingData]
    ) -> Dataset:
        """The stored dataset, or the one that is made of what `read` returns, then stored.

        Raises:
            UserError: an unknown persona, or nothing to train on.
        """
        entry = self.entry(settings, tokenizer)
        dataset = self.load(entry)
        if dataset is None:
            dataset = make_dataset(read(), settings, tokenizer)
            self.store(entry, dataset)
        return dataset

    def entry(self, settings: Settings, tokenizer: Any) -> Path | None:
        """Where the dataset of these settings lies, or would; None if it cannot be cached."""
        rest = _identity(settings, tokenizer)
        if self.data_hash is None or rest is None:
            return None
        return self.folder / f"{self.path.name}-{self.data_hash}-{rest}.npz"

    def load(self, entry: Path | None) -> Dataset | None:
        """The dataset stored at `entry`; None if there is none or it is damaged."""
        if entry is None or not entry.is_file():
            return None
        try:
            # Opened here: numpy leaves a torn file open, and Windows could not replace it then.
            with entry.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                dataset = _from_arrays({name: stored[name] for name in stored.files}, entry.name)
        except Exception:  # a damaged file breaks in a way of its own at every byte
            return None
        with suppress(OSError):
            entry.touch()  # the longest unused one is the first to go
        return dataset

    def store(self, entry: Path | None, dataset: Dataset) -> None:
        """Write the entry aside and move it into place; without a word if that is impossible."""
        # If the file was written anew meanwhile, nobody knows which state the dataset is of.
        if entry is None or file_hash(self.path) != self.data_hash:
            return
        with suppress(OSError, UserError):
            with AtomicFile(entry) as file:
                np.savez(file.stream, allow_pickle=False, **_to_arrays(dataset, entry.name))
            self._drop_old()
            # Wherever the data lie: members' words must not end up in a repository.
            with (self.folder / ".gitignore").open("x", encoding="utf-8") as ignore:
                ignore.write("*\n")

    def _drop_old(self) -> None:
        """Drop what other states of the data left, and all but the newest of this one."""
        entries = sorted(self._entries(), key=lambda found: found[1].stat().st_mtime_ns)
        current = [path for data, path in entries if data == self.data_hash]
        for _, path in entries:
            if path not in current[-KEEP:]:
                with suppress(OSError):
                    path.unlink()

    def _entries(self) -> list[tuple[str, Path]]:
        """The data hash and the path of each entry of this file, half-written ones included."""
        pattern = re.compile(re.escape(self.path.name) + r"-(\w{16})-\w{16}\.npz(\.part)?")
        try:
            found = [(pattern.fullmatch(path.name), path) for path in self.folder.iterdir()]
        except OSError:
            return []
        return [(match[1] if not match[2] else "", path) for match, path in found if match]


# What decides the result -----------------------------------------------------------------------


def _identity(settings: Settings, tokenizer: Any) -> str | None:
    """A hash of everything but the data; None for a tokenizer that cannot be told from others."""
    serialised = getattr(getattr(tokenizer, "backend_tokenizer", None), "to_str", None)
    if serialised is None:
        return None
    parts = {
        "settings": {name: getattr(settings, name) for name in DATASET_SETTINGS},
        "opted out": sorted(read_opt_outs(settings.opt_out_file)),
        "tokenizer": serialised(),
        "tokenizer class": type(tokenizer).__name__,
        "special tokens": tokenizer.special_tokens_map,
        "chat template": tokenizer.chat_template,
        "libraries": [version(name) for name in ("transformers", "tokenizers")],
        "versions": [PROMPT_FORMAT_VERSION, CACHE_VERSION],
        "code": _code_hash(),
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _code_hash() -> str:
    library = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for source in sorted(path for room in _ROOMS for path in (library / room).rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


# A dataset as arrays ---------------------------------------------------------------------------


def _to_arrays(dataset: Dataset, name: str) -> Arrays:
    """Everything that is not a number goes into `facts`, as JSON."""
    voice = dataset.voice
    facts = {
        "entry": name,
        "voice": [voice.kind, voice.name, voice.speaker_id, voice.system_prompt],
        "conversations": [dataset.training_conversations, dataset.held_out_conversations],
        "remarks": dataset.remarks,
        "training": _ids(dataset.training_examples),
        "validation": _ids(dataset.validation_examples),
    }
    return {
        "facts": np.frombuffer(json.dumps(facts).encode("ascii"), dtype=np.uint8),
        **_example_arrays("training", dataset.training_examples),
        **_example_arrays("validation", dataset.validation_examples),
    }


def _from_arrays(arrays: Arrays, name: str) -> Dataset:
    """The inverse of `_to_arrays`. Raises ValueError if it is another entry under this name."""
    facts = json.loads(arrays["facts"].tobytes())
    if facts["entry"] != name:
        raise ValueError("an entry under the name of another one")
    training, held_out = facts["conversations"]
    return Dataset(
        Voice(*facts["voice"]),
        training,
        held_out,
        _examples("training", arrays, facts["training"]),
        _examples("validation", arrays, facts["validation"]),
        tuple(facts["remarks"]),
    )


def _ids(examples: Iterable[TokenizedExample]) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.conversation_id, example.message_ids) for example in examples]


def _example_arrays(part: str, examples: list[TokenizedExample]) -> Arrays:
    """All examples end to end, with the length of each: int32, bool, int64, int64."""
    empty = (np.empty(0, np.int32), np.empty(0, np.bool_))
    return {
        f"{part}_input_ids": np.concatenate([empty[0], *(it.input_ids for it in examples)]),
        f"{part}_trained": np.concatenate([empty[1], *(it.trained for it in examples)]),
        f"{part}_lengths": np.array([len(it) for it in examples], dtype=np.int64),
        f"{part}_characters": np.array([it.characters for it in examples], dtype=np.int64),
    }


def _examples(part: str, arrays: Arrays, ids: list[Any]) -> list[TokenizedExample]:
    """Examples as views into the long arrays."""
    input_ids, trained = arrays[f"{part}_input_ids"], arrays[f"{part}_trained"]
    bounds = pairwise(accumulate(arrays[f"{part}_lengths"].tolist(), initial=0))
    characters = arrays[f"{part}_characters"].tolist()
    return [
        TokenizedExample(
            conversation, tuple(messages), input_ids[start:end], trained[start:end], count
        )
        for (conversation, messages), (start, end), count in zip(
            ids, bounds, characters, strict=True
        )
    ]
