"""The command that started this program, as its user would type it again."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil

from discord_lora.settings import Settings

NOT_AGAIN = ("--fresh", "--check")
"""Options that begin anew, or do not train at all: no part of going on."""
_SAFE_ON_WINDOWS = re.compile(r"[\w.\\/:=+-]+")
_EXPANDED_IN_DOUBLE_QUOTES = re.compile(r"[$`%\"“”„]")


def typed_command() -> str:
    """What to type to go on, quoted for PowerShell on Windows, for sh elsewhere; no secrets."""
    words = without_secrets([word for word in typed_words() if word not in NOT_AGAIN])
    return quoted(words)


def script_command(*words: object) -> str:
    """The command that runs another of the project's scripts with this Python."""
    return quoted([python_word(), *map(str, words)])


def typed_words() -> list[str]:
    """Interpreter, its options, script and arguments.

    A launcher that was given all of that as its own last words (`accelerate launch`, `nohup`) is
    what was typed.
    """
    with suppress(psutil.Error, OSError):
        for parent in reversed(psutil.Process().parents()):
            words = parent.cmdline()
            if len(words) > len(sys.argv) and words[-len(sys.argv) :] == sys.argv:
                return [_as_word(words[0]), *words[1:]]
    given = len(sys.orig_argv) - len(sys.argv)
    options = sys.orig_argv[1:given] if sys.orig_argv[given:] == sys.argv else []
    return [python_word(), *options, *sys.argv]


def python_word() -> str:
    """How this Python was called, as long as that names it here, else where it lies."""
    for word in (sys.orig_argv[0], "python"):
        found = shutil.which(word)
        if found and os.path.abspath(found) == os.path.abspath(sys.executable):  # noqa: PTH100
            return word
    return _as_word(sys.executable)


def _as_word(program: str) -> str:
    """A program below this folder by its short path."""
    here = os.getcwd() + os.sep  # noqa: PTH109 - not resolved: a link into .venv stays one
    return program.removeprefix(here)


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words with `[secret]` for the values of options such as `--hf-token`.

    Also of variables before the command: `env HF_TOKEN=... python ...`.
    """
    secret = [
        name for name, it in Settings.model_fields.items() if "SecretStr" in str(it.annotation)
    ]
    options = {"--" + name.replace("_", "-") for name in secret}
    variables = {name.upper() for name in secret}
    kept: list[str] = []
    for word in words:
        name, equals, _ = word.partition("=")
        if kept and kept[-1] in options:
            word = "[secret]"
        elif equals and (name in options or name.upper() in variables):
            word = f"{name}=[secret]"
        kept.append(word)
    return kept


def quoted(words: Sequence[str], *, windows: bool = os.name == "nt") -> str:
    """One line that a shell takes apart into these words again."""
    if not windows:
        return shlex.join(words)
    first, *others = map(_quoted_on_windows, words)
    call = "& " if first[0] in "\"'" else ""  # PowerShell takes a quoted word for a text
    return " ".join([call + first, *others])


def _quoted_on_windows(word: str) -> str:
    """For PowerShell; for cmd as well, unless the word has something that one of them expands.

    A double quote within is escaped as Windows PowerShell 5.1 hands it on.
    """
    if _SAFE_ON_WINDOWS.fullmatch(word):
        return word
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', word)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)  # else it would escape the closing quote
    if not _EXPANDED_IN_DOUBLE_QUOTES.search(word):
        return f'"{escaped}"'
    return "'" + re.sub("(['‘’‚‛])", r"\1\1", escaped) + "'"
