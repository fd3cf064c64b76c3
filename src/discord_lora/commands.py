"""Long commands of the set-up: a log without secrets, signs of life, failures in one sentence.

Standard library only, and parsable by Python 3.8, because bootstrap.py stands on it. It hands the
user's environment, cleaned, to the processes it starts, and reads no setting from it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Say = Callable[[str], None]

HEARTBEAT_SECONDS = 15.0
LAST_LINES_KEPT = 400
LINES_SHOWN = 12

NETWORK_SIGNS = re.compile(
    r"NewConnectionError|Failed to establish a new connection|Name or service not known"
    r"|name resolution|getaddrinfo failed|ConnectTimeout|ReadTimeout|Read timed out|No route to"
    r"|Network is unreachable|ProxyError|SSLError|CERTIFICATE_VERIFY|RemoteDisconnected"
    r"|IncompleteRead|IncompleteDownload|incomplete-download|ConnectionResetError",
    re.IGNORECASE,
)
DISK_SIGNS = re.compile(r"No space left|Errno 28\b|WinError 112|not enough space|Disk quota")
HASH_SIGNS = re.compile(r"DO NOT MATCH THE HASHES")
NEWS = re.compile(r"\s*(Collecting|Downloading|Building|Installing collected)\b")
URL_LOGIN = re.compile(r"://[^/\s@]+@")
URL_SECRET = re.compile(r"([?&][^=&\s]*(?:token|key|sig|secret|auth)[^=&\s]*=)[^&\s]+", re.I)


def say_plainly(text: str) -> None:
    """Print at once, on any console: what a cp1252 window cannot show becomes `?`."""
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def clean_environment() -> dict[str, str]:
    """The user's environment (proxy and pip settings stay) without what would confuse `.venv`."""
    misleading = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    environment = {name: value for name, value in os.environ.items() if name not in misleading}
    return {**environment, "PYTHONUTF8": "1"}


def run_logged(
    command: Sequence[str],
    log: Path,
    say: Say,
    what: str,
    *,
    folder: Path | None = None,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> tuple[int, list[str]]:
    """Run a command in `folder` with its output appended to `log` and a sign of life now and then.

    Returns the exit code and the last lines of output, without logins and keys in URLs.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: deque[str] = deque(maxlen=LAST_LINES_KEPT)
    began = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        reader = threading.Thread(target=copy_lines, args=(process, log, lines), daemon=True)
        reader.start()
        try:
            while reader.is_alive():
                reader.join(heartbeat_seconds)
                if reader.is_alive():
                    say(f"  ... {what}, {time.monotonic() - began:.0f} s{latest_news(lines)}")
        except BaseException:
            process.kill()
            raise
        return process.wait(), list(lines)


def copy_lines(process: subprocess.Popen[str], log: Path, lines: deque[str]) -> None:
    """Copy the output into the log and the memory of last lines, secrets taken out."""
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"\n== {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        for line in process.stdout or ():
            clean = without_secrets(line.rstrip())
            lines.append(clean)
            sink.write(clean + "\n")
            sink.flush()


def latest_news(lines: Iterable[str]) -> str:
    """The last line of pip's that says what it is at; unpacking is silent and takes longest."""
    news = [line.strip() for line in tuple(lines) if NEWS.match(line)]
    if not news:
        return ""
    return ": unpacking" if news[-1].startswith("Installing collected") else f": {news[-1][:70]}"


def without_secrets(text: str) -> str:
    """The text without logins (`https://user:word@host`) and tokens in URLs."""
    return URL_SECRET.sub(r"\1***", URL_LOGIN.sub("://***@", text))


def explain_failure(lines: Sequence[str], log: Path, what: str) -> str:
    """What went wrong, from the output, and what to do next."""
    text = "\n".join(lines)
    if DISK_SIGNS.search(text):
        reason = "the disk is full"
        remedy = "free some space (10 GB is plenty)"
    elif HASH_SIGNS.search(text):
        reason = "a downloaded file is not the one that was published"
        remedy = "ask whoever runs your package mirror if this stays,"
    elif NETWORK_SIGNS.search(text):
        reason = "the package index cannot be reached"
        remedy = "check the connection or the proxy"
    else:
        shown = "\n".join(f"    {line}" for line in lines[-LINES_SHOWN:])
        return (
            f"{what} failed; its last lines were\n{shown}\n  The whole output is in {log}; "
            "put right what it names and run the same command again"
        )
    return f"{what} failed: {reason}; {remedy} and run the same command again (details: {log})"
