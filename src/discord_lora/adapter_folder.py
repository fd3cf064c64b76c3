"""`adapters/<run>/`: a plain PEFT adapter and `run.json`, which says how it was made.

Training writes it and every chat front end reads it; this file is where both meet.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from discord_lora.console import UserError
from discord_lora.conversations.prompt_format import PROMPT_FORMAT_VERSION, Voice

RUN_FILE = "run.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

# RuntimeError: sizes that do not fit, or a nesting without end.
_LOAD_ERRORS = (
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError),
    SafetensorError,
)


@dataclass(slots=True)
class RunInfo:
    """What `run.json` holds."""

    base_model: str
    """As BASE_MODEL named it."""
    quantization: str
    voice: Voice
    settings: dict[str, Any]
    data_fingerprint: str
    """SHA-256 over the tokens and masks of all examples."""
    versions: dict[str, str]
    steps: int = 0
    """Steps of this run."""
    steps_before: int = 0
    """Steps on the same data that the adapter had behind it when this run went on with it."""
    losses: dict[str, float] = field(default_factory=dict)
    """Held-out loss in nats a token and bits a character, before and after training."""
    prompt_format_version: int = PROMPT_FORMAT_VERSION

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / RUN_FILE).write_text(text + "\n", encoding="utf-8", newline="\n")


def read_run_info(folder: Path) -> RunInfo:
    """Read and check `run.json`.

    Raises:
        UserError: not a finished adapter, damaged, or made for another prompt format.
    """
    path = folder / RUN_FILE
    if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{folder} holds no finished adapter ({RUN_FILE} and {WEIGHTS_FILE}); run "
            "python training/train_lora.py, or name another folder below adapters/."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        _check_format(folder, raw["prompt_format_version"])
        raw["voice"] = Voice(**raw["voice"])
        info = RunInfo(**raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); train again or restore it.") from None
    return info


def load_adapter(model: Any, folder: Path, *, is_trainable: bool = False) -> Any:
    """Put the adapter of `folder` on its base model; only safetensors are read.

    Raises:
        UserError: the weights are damaged or belong to another model.
    """
    try:
        _check_kind(folder)
        return PeftModel.from_pretrained(
            model, str(folder), is_trainable=is_trainable, use_safetensors=True
        )
    except _LOAD_ERRORS as error:
        raise _unloadable(folder, error) from error


def exchange_adapter(model: Any, folder: Path) -> None:
    """Put the adapter of `folder` in the place of the one that the PEFT model has.

    Raises:
        UserError: the weights are damaged or belong to another model; the old adapter stays.
    """
    old = model.active_adapter
    new = "other" if old == "default" else "default"
    try:
        _check_kind(folder)
        model.load_adapter(str(folder), new, torch_device=str(model.device))
    except _LOAD_ERRORS as error:
        if new in model.peft_config:
            model.delete_adapter(new)
        model.set_adapter(old, inference_mode=True)
        raise _unloadable(folder, error) from error
    model.set_adapter(new, inference_mode=True)
    model.delete_adapter(old)


def _check_kind(folder: Path) -> None:
    """Raise ValueError unless it is a LoRA in safetensors.

    PEFT would also read pickled weights, and kinds whose configuration names what else to load.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{CONFIG_FILE} is not that of a LoRA")
    if config.get("megatron_config"):
        raise ValueError(f"{CONFIG_FILE} names a module to import")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{WEIGHTS_FILE} is missing")


def _unloadable(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"The adapter in {folder} cannot be loaded ({reason}); train again or restore it."
    )


def _check_format(folder: Path, version: object) -> None:
    if version != PROMPT_FORMAT_VERSION:
        raise UserError(
            f"{folder} was trained with prompt format {version}, and this version of the project "
            f"speaks {PROMPT_FORMAT_VERSION}; train again, or install the version that made it."
        )


def _is_of(folder: Path, persona: str) -> bool:
    if not persona:
        return True
    try:
        return bool(read_run_info(folder).settings.get("persona") == persona)
    except UserError:
        return False


def find_adapter(output_dir: Path, name: str | None = None, *, persona: str = "") -> Path:
    """The named adapter folder, or the newest finished one below `output_dir` (of a persona).

    Raises:
        UserError: there is none.
    """
    if name:
        folder = Path(name)
        return folder if folder.is_dir() else output_dir / name
    finished = [
        path
        for path in output_dir.glob(f"*/{WEIGHTS_FILE}")
        if (path.parent / RUN_FILE).is_file() and _is_of(path.parent, persona)
    ]
    if not finished:
        raise UserError(
            f"There is no adapter below {output_dir} yet; run python training/train_lora.py, or "
            "python scripts/quickstart.py for the built-in sample."
        )
    return max(finished, key=lambda path: path.stat().st_mtime).parent
