"""Which folder a run writes into, and whether it starts, goes on, or is done already."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from discord_lora.adapter_folder import RUN_FILE, WEIGHTS_FILE, read_run_info
from discord_lora.analysis.morning.history import HISTORY_FILE
from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.prompt_format import Voice
from discord_lora.finetuning.checkpoints import UNFINISHED, newest_progress
from discord_lora.finetuning.disk_room import look_into, patiently, put_in_place
from discord_lora.finetuning.run_lock import LOCK_FILE, RunLock
from discord_lora.settings import BOT_SETTINGS, Settings

IDENTITY_FILE = "identity.json"
"""What a run is: settings and data. Written at its start; only the same run may go on here."""

UNTRAINED = "step-00000000"
"""The checkpoint before the first step."""

HARMLESS = frozenset(
    {
        "training_data_path",  # the data fingerprint tells whether it is the same
        "output_dir",
        "run_name",
        "logs_dir",
        "hf_token",
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "max_reply_tokens",
        "reply_time_limit_seconds",
        "max_concurrent_replies",
        "max_waiting_replies",
        "inference_url",
        "inference_api_key",
        "inference_model",
        "save_every_steps",
        "save_total_limit",
        "log_every_steps",
        "sample_answers",
        "keep_awake",
        "max_tokens_per_microbatch",
        "packing",
        "gradient_checkpointing",
        *BOT_SETTINGS,
    }
)
"""Settings that may change in the middle of a run: what is learned, in which steps and at which
rate, stays the same. (Packing and token budget decide which activations dropout hits.)"""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder below OUTPUT_DIR."""

    path: Path
    identity: dict[str, Any]
    logs: Path
    """Its history and report."""
    lock: RunLock = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lock", RunLock(self.path))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def is_finished(self) -> bool:
        return (self.path / WEIGHTS_FILE).is_file() and (self.path / RUN_FILE).is_file()

    @property
    def holds_work(self) -> bool:
        """False for what a run left that had not learned anything yet: nobody's work.

        Raises:
            UserError: the drive does not say.
        """
        steps = (it for it in look_into(self.checkpoints) if it.suffix not in UNFINISHED)
        return self.is_finished or any(
            path.name.startswith("step-") and path.stem != UNTRAINED for path in steps
        )

    @property
    def stored_identity(self) -> dict[str, Any] | None:
        """Of the run that was here before; None if there was none, empty if nobody can tell.

        Where the file is damaged or gone, the `run.json` of a finished adapter holds the same. It
        may also be damaged and say something: a checkpoint that was written under ours refutes it.
        """
        stored = _stored_identity(self.path)
        if not stored and self.is_finished:
            with suppress(UserError, AttributeError, OSError):
                stored = _without_harmless(read_run_info(self.path).settings)
        if stored is None or stored == self.identity:
            return stored
        is_ours = newest_progress(self.checkpoints).get("identity") == _hash(self._text)
        return self.identity if is_ours else stored

    @property
    def identity_hash(self) -> str:
        """Of the identity as it lies there; empty where it cannot be read."""
        try:
            return _hash(patiently((self.path / IDENTITY_FILE).read_bytes))
        except OSError:
            return ""

    @property
    def _text(self) -> bytes:
        return json.dumps(self.identity, indent=2).encode("utf-8")

    def create(
        self, say: Callable[[str], None] = lambda _line: None, *, fresh: bool = False
    ) -> None:
        """Keep others out until `close`, make the folder and write down what this run is.

        `fresh` deletes what is there first. One of several processes does it for all.

        Raises:
            UserError: another run is in it, or came before; or it cannot be written.
        """
        self.lock.take(say)
        # Only now nobody else changes it: what was found out before may be over.
        stored = self.stored_identity
        if fresh:
            _delete(self.path)
        elif self.holds_work and stored is not None and stored != self.identity:
            raise UserError(_what_differs(self.path, stored, self.identity))
        if fresh or not (self.holds_work or stored == self.identity):
            with suppress(OSError):  # of another run
                (self.logs / HISTORY_FILE).replace(self.logs / f"before-{HISTORY_FILE}")
        try:
            if not self.holds_work and stored != self.identity and self.checkpoints.exists():
                shutil.rmtree(self.checkpoints)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if _stored_identity(self.path) != self.identity:
                # Aside: on a full disk, what is written over is gone.
                aside = self.path / f"{IDENTITY_FILE}.part"
                aside.write_bytes(self._text)
                put_in_place(aside, self.path / IDENTITY_FILE)
        except OSError as error:
            raise UserError(
                f"OUTPUT_DIR: cannot write into {self.path} ({error}); choose another folder."
            ) from None

    def close(self) -> None:
        """Let others in."""
        self.lock.release()


def choose_run_folder(
    settings: Settings, voice: Voice, data_fingerprint: str, *, fresh: bool
) -> RunFolder:
    """The folder for this run, existing or new.

    The same command finds its own folder again. Other settings get a new numbered folder, unless
    a run is unfinished there or RUN_NAME asks for that folder.

    With `fresh` it will be deleted, so that it may hold any run that is unfinished or ours.

    Raises:
        UserError: the folder holds another run; lists what differs.
    """
    identity = make_identity(settings, data_fingerprint)
    name = settings.run_name or default_run_name(settings, voice)
    for number in count(1):
        suffix = "" if number == 1 else f"-{number}"
        folder = RunFolder(
            settings.output_dir / (name + suffix), identity, settings.logs_dir / (name + suffix)
        )
        stored = folder.stored_identity if folder.holds_work else None
        is_ours = stored is None or stored == identity
        if not is_ours and folder.is_finished and not settings.run_name:
            continue
        if not is_ours and not fresh:
            raise UserError(_what_differs(folder.path, stored or {}, identity))
        return folder
    raise AssertionError("count() never ends")


def _delete(path: Path) -> None:
    """Everything but the lock, which has to outlive it.

    The identity goes last: who is killed before leaves a run that is still known for what it was.
    """
    try:
        for entry in sorted(path.iterdir(), key=lambda it: it.name == IDENTITY_FILE):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK_FILE:
                entry.unlink()
    except OSError as error:
        raise UserError(
            f"--fresh: cannot delete {path} ({error}); close what uses it, or set another RUN_NAME."
        ) from None


def make_identity(settings: Settings, data_fingerprint: str) -> dict[str, Any]:
    values = settings.model_dump(mode="json", exclude=set(HARMLESS))
    return {**values, "data": data_fingerprint}


def fingerprint(examples: Sequence[TokenizedExample]) -> str:
    """SHA-256 over tokens and masks: equal if and only if training would see the same."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example).to_bytes(4, "little"))
        digest.update(example.input_ids.tobytes())
        digest.update(example.trained.tobytes())
    return digest.hexdigest()


def default_run_name(settings: Settings, voice: Voice) -> str:
    """`calm.heron-sample`, `server-Mistral-7B-Instruct-v0.3`."""
    who = voice.name if voice.kind == "persona" else voice.kind
    model = Path(settings.base_model).name
    name = f"{_slug(settings.persona or who)}-{_slug(model)}"
    return name + "-further" if settings.continue_from else name


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "run"


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _stored_identity(path: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads(patiently((path / IDENTITY_FILE).read_bytes))
        return _without_harmless(stored) if isinstance(stored, dict) else {}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}


def _without_harmless(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Also those that an earlier version did not know for harmless."""
    return {name: value for name, value in stored.items() if name not in HARMLESS}


def _what_differs(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    if not stored:
        return (
            f"{path / IDENTITY_FILE} is damaged, so this run cannot be known again; set another "
            "RUN_NAME, or add --fresh to delete the folder and start over."
        )
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    changes = "; ".join(
        "the training data changed"
        if key == "data"
        else f"{key.upper()} was {stored.get(key)}, is {wanted.get(key)}"
        for key in keys
    )
    return (
        f"{path} holds a run with other settings ({changes}). Restore them to go on with it, set "
        "another RUN_NAME to keep both, or add --fresh to delete it and start over."
    )
