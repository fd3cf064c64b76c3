"""One run folder, one run: the second training is refused."""

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from discord_lora.console import UserError

LOCK_FILE = ".lock"
NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""How file systems without locks say so: some network drives and FUSE, on Windows as EINVAL."""


class RunLock:
    """Held from `take` to `release`. The system releases it when the process dies, however."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Not its own substitute for file systems without locks: a killed run would leave that.
        self._lock = FileLock(folder / LOCK_FILE, thread_local=False, fallback_to_soft=False)

    def take(self, say: Callable[[str], None]) -> None:
        """Make the folder and lock it, or say why that cannot be.

        Raises:
            UserError: another run holds it, or the folder cannot be written.
        """
        if self._lock.is_locked:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self._folder} is in use by another training. Wait until it ends, or stop it "
                "(Ctrl+C in its window, or a file named STOP in that folder); to train a second "
                "adapter at the same time, set another RUN_NAME."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                raise UserError(
                    f"OUTPUT_DIR: cannot write into {self._folder} ({error}); choose another "
                    "folder."
                ) from None
            say(
                f"{self._folder} cannot be locked ({error.strerror}): see to it that no second "
                "training writes there"
            )

    def release(self) -> None:
        with suppress(OSError):
            self._lock.release(force=True)
