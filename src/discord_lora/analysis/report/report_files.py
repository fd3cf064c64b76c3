"""Files around the data report: the exports it may start from, the account, what is written."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson
from rich.console import Console

from discord_lora.analysis.report.columns import MessageColumns, read_columns
from discord_lora.analysis.report.data_report import (
    DataReport,
    Preparation,
    as_json,
    documented_keys,
)
from discord_lora.console import UserError, byte_progress
from discord_lora.messages.account import PrepareReport, account_beside
from discord_lora.messages.opt_out import read_opt_outs
from discord_lora.messages.output import file_hash, write_whole
from discord_lora.messages.prepare import PrepareOptions, prepare


@contextmanager
def training_data(
    exports: tuple[Path, ...], prepared: Path, account: Path | None, console: Console
) -> Iterator[tuple[Path, Preparation | None]]:
    """The file to look at, and what its preparation left out, where that is known.

    Exports are prepared with the usual cleaning into a file that is deleted afterwards.

    Raises:
        UserError: as `prepare` or `read_account`, or an account is given for exports.
    """
    if not exports:
        yield prepared, read_account(account) if account else find_account(prepared)
        return
    if account:
        raise UserError("--account: exports have an account of their own; leave it out.")
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        yield prepare_aside(exports, Path(folder), console)


def prepare_aside(
    paths: tuple[Path, ...], folder: Path, console: Console
) -> tuple[Path, Preparation]:
    """Prepare exports with the usual cleaning into `folder`. Raises UserError as prepare does."""
    out = folder / "training_data.jsonl"
    total = 0

    def on_total(size: int) -> None:
        nonlocal total
        total = size

    with byte_progress(console) as on_bytes:
        found = prepare(PrepareOptions(paths, out), on_total, lambda done: on_bytes(done, total))
    return out, _preparation_of(found)


def _preparation_of(found: PrepareReport) -> Preparation:
    return Preparation(found.read, found.kept, dict(found.dropped), found.rejects)


def read_with_progress(path: Path, console: Console, opt_out_file: Path) -> MessageColumns:
    """Read training data with a bar over the bytes, without members who opted out.

    Raises UserError as read_columns and read_opt_outs do.
    """
    opted_out = read_opt_outs(opt_out_file)
    size = path.stat().st_size if path.is_file() else 0
    with byte_progress(console) as on_bytes:
        return read_columns(path, lambda done: on_bytes(done, size), opted_out)


def read_account(path: Path) -> Preparation:
    """What `prepare_training_data.py --json` wrote. Raises UserError when it is something else."""
    try:
        account = orjson.loads(path.read_bytes())
        dropped = {str(reason): int(count) for reason, count in account["dropped"].items()}
        found = Preparation(
            int(account["read"]), int(account["kept"]), dropped, int(account["rejects"])
        )
    except OSError as error:
        raise UserError(f"--account: {path} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"--account: {path} is no account; name what prepare_training_data.py --json wrote."
        ) from None
    return found


def find_account(prepared: Path) -> Preparation | None:
    """The account that lies beside training data, if it is of what they hold now."""
    path = account_beside(prepared)
    with suppress(OSError, ValueError, TypeError, KeyError, UserError):
        if orjson.loads(path.read_bytes())["training_data_hash"] == file_hash(prepared):
            return read_account(path)
    return None


def write_reports(report: DataReport, json_file: Path | None, page: Path | None) -> list[Path]:
    """Write what was asked for; returns the files. Raises UserError when one cannot be written."""
    if json_file:
        write_whole(json_file, as_json(report), "--json")
    if page:
        from discord_lora.analysis.report.report_html import as_html  # noqa: PLC0415 - slow import

        write_whole(page, as_html(report), "--html")
    return [path for path in (json_file, page) if path]


def key_table() -> str:
    """Every key of the JSON and what it means, a line each."""
    return "\n".join(f"{path:42} {meaning}" for path, meaning in documented_keys())
