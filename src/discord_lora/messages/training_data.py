"""`data/training_data.jsonl`: the file that every later stage starts from."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from discord_lora.console import UserError
from discord_lora.messages.cycle_collection import without_cycle_collection
from discord_lora.messages.fields import UnreadableValue
from discord_lora.messages.opt_out import OPTED_OUT
from discord_lora.messages.record import Message, ReadyConversation, Reject
from discord_lora.messages.record_fields import RecordContext
from discord_lora.messages.record_reader import Located, open_records, parse_record

HOW_TO_PREPARE = "python scripts/prepare_training_data.py PATH_TO_EXPORTS"
_MOST_NAMED = 5
EMPTY = "empty"
DUPLICATE = "duplicate id"


@dataclass
class TrainingData:
    """What one file held. `lines` = messages + conversations + rejects + all of `dropped`."""

    messages: list[Message] = field(default_factory=list)
    conversations: list[ReadyConversation] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    lines: int = 0

    def remarks(self) -> Iterator[str]:
        """Sentences about what was not taken as it stands; nothing is left out silently."""
        yield from self.warnings
        if self.dropped:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items())
            yield f"left out: {reasons}"
        for reject in self.rejects[:_MOST_NAMED]:
            yield f"not read: {reject.file}, {reject.place}: {reject.reason}"
        if len(self.rejects) > _MOST_NAMED:
            yield f"not read: {len(self.rejects) - _MOST_NAMED:,} more places"


@without_cycle_collection()
def read_training_data(path: Path, opted_out: Collection[str] = ()) -> TrainingData:
    """Everything readable in `path`, in file order, with the rest accounted for.

    Takes what `prepare_training_data.py` writes and whatever is close to it: other key names,
    other date formats, a JSON array, ready conversations. Messages of the authors `opted_out`
    (ids) are dropped: they may have opted out after the file was prepared. Raises UserError when
    the file is missing, cannot be opened, or holds nothing readable.
    """
    data = TrainingData()
    with explained(path):
        context, records = open_records(opener(path), str(path), path.stem)
        for entry in records:
            take(data, entry, context, str(path))
    _keep_the_latest_of_each_id(data)
    _drop_opted_out(data, opted_out)
    refuse_nothing_readable(data, path)
    data.warnings.extend(context.what_was_made_up(str(path)))
    return data


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise UserError where the file is missing or cannot be opened."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"There is no {path}. Make it with: {HOW_TO_PREPARE}") from None
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else (error.strerror or "it cannot be read")
        raise UserError(
            f"{path} cannot be opened: {reason}. Name the file that this wrote: {HOW_TO_PREPARE}"
        ) from None


def conversation_as_json(conversation: ReadyConversation) -> dict[str, Any]:
    """One ready conversation as a line; `train` stands where it is not the role's default."""
    turns: list[dict[str, Any]] = []
    for turn in conversation.turns:
        line: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.train != (turn.role == "assistant"):
            line["train"] = turn.train
        turns.append(line)
    return {"id": conversation.id, "messages": turns}


def write_line(stream: BinaryIO, record: Message | Reject | dict[str, Any]) -> None:
    """Append one line to an open JSONL file; a record is written under its field names."""
    stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def opener(path: Path) -> Callable[[], BinaryIO]:
    """Opens the file at its start, as often as asked."""
    return lambda: path.open("rb")


def take(data: TrainingData, entry: Located | Reject, context: RecordContext, file: str) -> None:
    """Add one value of the file to `data`, as what it is."""
    data.lines += 1
    if isinstance(entry, Reject):
        data.rejects.append(entry)
        return
    place, value = entry
    try:
        record = parse_record(value, context, place)
    except UnreadableValue as problem:
        data.rejects.append(Reject(file, place, str(problem)))
        return
    if isinstance(record, ReadyConversation):
        data.conversations.append(record)
    elif record.content.strip():
        data.messages.append(record)
    else:
        data.dropped[EMPTY] += 1


def _keep_the_latest_of_each_id(data: TrainingData) -> None:
    latest = {message.id: message for message in data.messages}
    repeated = len(data.messages) - len(latest)
    if repeated:
        data.messages = list(latest.values())
        data.dropped[DUPLICATE] = repeated


def _drop_opted_out(data: TrainingData, opted_out: Collection[str]) -> None:
    if not opted_out:
        return
    kept = [message for message in data.messages if message.author_id not in opted_out]
    if dropped := len(data.messages) - len(kept):
        data.messages = kept
        data.dropped[OPTED_OUT] = dropped


def refuse_nothing_readable(data: TrainingData, path: Path) -> None:
    """Raise UserError unless there is something to learn from."""
    if data.messages or data.conversations:
        return
    if not data.lines:
        raise UserError(f"{path} is empty. Fill it with: {HOW_TO_PREPARE}")
    why = f" (first: {data.rejects[0].place}: {data.rejects[0].reason})" if data.rejects else ""
    raise UserError(
        f"Nothing in {path} could be read as a message or a conversation{why}. "
        f"If it is an export, prepare it with: {HOW_TO_PREPARE}"
    )
