"""`logs/training.log`: dated lines, a new file every 2 MB, the four before it kept."""

import logging
from contextlib import suppress
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from discord_lora.console import UserError

BYTES_A_LOG, OLD_LOGS = 2_000_000, 4


class TextLog:
    """Appends dated lines from any thread. A disk that is full costs the line, not the run."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise UserError(f"LOGS_DIR: cannot write {path} ({error}).") from None
        self._handler = _LetGoAfterEachLine(
            path,
            maxBytes=BYTES_A_LOG,
            backupCount=OLD_LOGS,
            encoding="utf-8",
            delay=True,
            errors="backslashreplace",
        )

    def write(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._handler.handle(logging.makeLogRecord({"msg": f"{now}  {text}"}))

    def close(self) -> None:
        with suppress(OSError):
            self._handler.close()


class _LetGoAfterEachLine(RotatingFileHandler):
    """Has the file open only while it writes: two runs may share it, and either may rotate it."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        with suppress(OSError):
            if self.stream is not None:
                self.stream.close()
        self.stream = None

    def doRollover(self) -> None:  # noqa: N802 - logging's name
        """Rename the full file first, and the old ones only if that went well.

        On Windows it fails while another program (`Get-Content -Wait`) has the file open. Then the
        file grows on until it lets go; the inherited method would push out an old one at each try.
        """
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        names = [Path(f"{self.baseFilename}.{n}") for n in range(self.backupCount + 1)]
        with suppress(OSError):
            if not names[0].exists():  # left there if a renaming below failed the last time
                Path(self.baseFilename).rename(names[0])
            for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
                if newer.exists():
                    newer.replace(older)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """No traceback into the progress bar."""
