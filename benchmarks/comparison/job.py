"""What one process is asked to measure, and what it answers: plain data, kept as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement in a process of its own."""

    task: str
    """A contender of `CONTENDERS`, or `machine`, `rows` or `profile`."""
    settings: dict[str, Any]
    """The project's settings, by field name."""
    location: str
    """Folder or Hugging Face name of the base model."""
    messages: int
    """Target messages that every contender trains on."""
    held_out_messages: int
    device: str
    """`cpu` or `cuda`."""
    row_tokens: int = 1024
    """Longest packed row: of TRL's best configuration, and of the task `rows`."""
    rows_per_pass: int = 1
    """Rows a pass of TRL's best configuration; TRL lays them end to end."""


@dataclass(slots=True)
class Result:
    """What one contender did."""

    contender: str
    messages: int
    """Target messages trained on."""
    tokens: int
    """Tokens that went through the model, context included, padding not."""
    steps: int
    seconds: float
    """Of the optimizer steps alone: no loading, tokenizing, packing ahead, or evaluation."""
    peak_bytes: int
    """Highest memory of the process up to the last step; on a card, of the card during them."""
    held_out_nats: float | None
    """Held-out loss after training, in nats a token."""
    same_messages: str
    """Hash over the ids of the messages trained on: equal for all contenders of a round."""
    busy_cores: float
    """Processor cores kept busy during the steps: tells when others took some of them."""
    shape: str
    """How the tokens went through the model, in words."""

    @property
    def messages_per_second(self) -> float:
        return self.messages / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_job(path: Path) -> Job:
    return Job(**json.loads(path.read_text(encoding="utf-8")))


def result_as_dict(result: Result) -> dict[str, Any]:
    rates = ("messages_per_second", "tokens_per_second")
    return asdict(result) | {name: round(getattr(result, name), 3) for name in rates}
