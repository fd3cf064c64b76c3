"""From a bare Python to a complete `.venv`, so that a script needs no set-up before it.

A script calls `ensure_environment(...)` first thing. Outside `<repo>/.venv` this makes the
environment, installs the requirements and runs the script again inside it; inside, once
everything is there, it returns in milliseconds.

Only the standard library, and only syntax that Python 3.8 parses: somebody with a Python that is
too old has to read our sentence about it, not a SyntaxError.

Next to settings.py this file and commands.py are the only ones that touch `os.environ`: they hand
it, cleaned, to the processes they start, and read no setting from it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from discord_lora.commands import (
    NETWORK_SIGNS,
    clean_environment,
    explain_failure,
    run_logged,
    say_plainly,
)
from discord_lora.torch_build import TORCH_INDEX, cuda_build, nvidia_card, wants_cuda_wheel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from discord_lora.commands import Say

PYTHON_OLDEST = (3, 11)
PYTHON_NEWEST = (3, 13)
PIP_VERSION = "26.3"
ENVIRONMENT_FOLDER = ".venv"
STAMP_NAME = "discord-lora-setup.json"
STAMP_FORMAT = 1
RERUN_MARK = "DISCORD_LORA_RERUN"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class SetupError(Exception):
    """The set-up cannot go on; the text is one sentence that ends with what to do next."""


def ensure_environment(requirements: Path, say: Say = say_plainly) -> None:
    """Return only inside a complete `.venv`; otherwise make it and run the script again there.

    `.venv` is made beside `requirements`: in the root of the repository, or in a folder of it
    that needs an environment of its own. Exits with 2 and one sentence when the user has to do
    something first, with 130 when interrupted (the next run repairs it).
    """
    root = requirements.resolve().parent
    try:
        check_python(sys.version_info[:2])
        prepare(root, requirements.name, say)
        if not is_inside(root):
            rerun(root)
    except SetupError as error:
        say(f"error: {error}")
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        say(f"error: the set-up cannot go on in {root} ({error}); free some space or close what")
        say("  uses that folder, and run the same command again")
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        say("Stopped. The same command goes on from here.")
        sys.exit(EXIT_INTERRUPTED)
    os.environ.pop(RERUN_MARK, None)


def check_python(version: tuple[int, ...]) -> None:
    """Raise SetupError for a Python that the pinned packages have no wheels for."""
    if PYTHON_OLDEST <= version[:2] <= PYTHON_NEWEST:
        return
    shown = ".".join(str(part) for part in version[:2])
    remedy = "py -3.11" if os.name == "nt" else "python3.11"
    raise SetupError(
        f"this needs Python 3.11 to 3.13 and this is Python {shown}; install 3.11 from "
        f"https://www.python.org/downloads/ and run the same command with `{remedy}`"
    )


def prepare(root: Path, requirements: str, say: Say) -> None:
    """Make `.venv` if it is missing or broken, and install unless the stamp says it is done."""
    fingerprints = requirement_fingerprints(root, requirements)
    fault = None if is_inside(root) else environment_fault(root)
    if fault is None and stamp_satisfies(read_stamp(root), fingerprints, root):
        return
    if not is_inside(root):
        mention_other_environment(root, say)
    if fault is not None:
        make_environment(root, fault, say)
    # Without a stamp an interrupted installation is seen as one and finished by the next run.
    stamp_path(root).unlink(missing_ok=True)
    install(root, requirements, say)
    write_stamp(root, fingerprints)


def is_inside(root: Path) -> bool:
    """Whether this process is already the `.venv` of that folder."""
    return same_path(Path(sys.prefix), root / ENVIRONMENT_FOLDER)


def same_path(one: Path, other: Path) -> bool:
    return os.path.normcase(one.resolve()) == os.path.normcase(other.resolve())


def repository(root: Path) -> Path:
    """The folder with pyproject.toml: `root`, or what it lies in."""
    holding = [folder for folder in (root, *root.parents) if (folder / "pyproject.toml").is_file()]
    return holding[0] if holding else root


def setup_log(root: Path) -> Path:
    return repository(root) / "logs" / "setup.log"


def environment_python(root: Path) -> Path:
    folder = root / ENVIRONMENT_FOLDER
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


# --- the stamp: what has been installed completely --------------------------------------------


def stamp_path(root: Path) -> Path:
    return root / ENVIRONMENT_FOLDER / STAMP_NAME


def read_stamp(root: Path) -> dict[str, object]:
    """The stamp, or an empty one where it is missing or damaged."""
    try:
        stamp = json.loads(stamp_path(root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(root: Path, fingerprints: dict[str, str]) -> None:
    version, _ = ask_environment(root) or (None, None)
    stamp = {
        "format": STAMP_FORMAT,
        "python": version,
        "folder": str((root / ENVIRONMENT_FOLDER).resolve()),
        "installed": fingerprints,
    }
    aside = stamp_path(root).with_suffix(".tmp")
    aside.write_text(json.dumps(stamp, indent=2), encoding="utf-8")
    aside.replace(stamp_path(root))


def stamp_satisfies(stamp: dict[str, object], fingerprints: dict[str, str], root: Path) -> bool:
    """Whether everything in `fingerprints` is installed, and in this very folder."""
    installed = stamp.get("installed")
    return (
        stamp.get("format") == STAMP_FORMAT
        and stamp.get("folder") == str((root / ENVIRONMENT_FOLDER).resolve())
        and isinstance(installed, dict)
        and fingerprints.items() <= installed.items()
    )


def python_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def requirement_fingerprints(root: Path, requirements: str) -> dict[str, str]:
    """One hash for the file and for each file it includes: the superset satisfies the subset."""
    names = list(included_files(root, requirements))
    return {name: fingerprint(root, included_files(root, name)) for name in names}


def included_files(root: Path, name: str) -> Iterator[str]:
    """The requirements file itself, then those it names with `-r`, depth first."""
    path = root / name
    if not path.is_file():
        raise SetupError(f"{name} is missing from {root}; clone the repository again")
    yield name
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.startswith("-r "):
            yield from included_files(root, line[3:].strip())


def fingerprint(root: Path, names: Iterable[str]) -> str:
    """Changes with the requirement files, the dependencies in pyproject.toml and the torch build.

    Line ends do not count: git may check out CRLF on Windows.
    """
    digest = hashlib.sha256()
    for name in names:
        digest.update("\n".join((root / name).read_text("utf-8-sig").splitlines()).encode())
    digest.update(json.dumps(declared_dependencies(root), sort_keys=True).encode())
    digest.update(b"nvidia" if wants_cuda_wheel() else b"")
    return digest.hexdigest()


def declared_dependencies(root: Path) -> dict[str, object]:
    """The part of pyproject.toml that decides what an editable install brings."""
    import tomllib  # noqa: PLC0415 - Python 3.11; an older one must get as far as our sentence

    try:
        project = tomllib.loads((repository(root) / "pyproject.toml").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    table = project.get("project", {})
    names = ("name", "dependencies", "optional-dependencies", "scripts", "requires-python")
    return {"build": project.get("build-system"), **{name: table.get(name) for name in names}}


# --- the environment --------------------------------------------------------------------------


def mention_other_environment(root: Path, say: Say) -> None:
    """Somebody who activated another environment is told that it stays as it is."""
    conda = os.environ.get("CONDA_PREFIX")
    if sys.prefix != sys.base_prefix or conda:
        active = conda or sys.prefix
        say(f"Another environment is active ({active}); it stays untouched, this uses")
        say(f"  {root / ENVIRONMENT_FOLDER}")


def make_environment(root: Path, fault: str, say: Say) -> None:
    """Create `.venv`, or create it again where it cannot be used."""
    folder = root / ENVIRONMENT_FOLDER
    if folder.exists():
        say(f"The {ENVIRONMENT_FOLDER} here {fault}: making it again.")
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"this Python comes without the `{missing[0]}` module; on Debian or Ubuntu run "
            f"`sudo apt install python{python_version()}-venv`, then the same command again"
        )
    say(f"Making {ENVIRONMENT_FOLDER} (about 10 seconds) ...")
    command = [sys.executable, "-m", "venv", "--clear", str(folder)]
    code, lines = run_logged(command, setup_log(root), say, "making .venv")
    if code:
        raise SetupError(explain_failure(lines, setup_log(root), "making .venv"))


def environment_fault(root: Path) -> str | None:
    """Why there is no usable `.venv`, or None.

    One made by hand is fine, and so is one made by another Python that we support.
    """
    folder = root / ENVIRONMENT_FOLDER
    stamp = read_stamp(root)
    # Copied along with its repository it would still run, and import the other copy's sources.
    if stamp and stamp.get("folder") != str(folder.resolve()):
        return "was made in another folder"
    answer = ask_environment(root)
    if answer is None:
        return "is incomplete or belongs to a Python that is gone"
    version, prefix = answer
    supported = PYTHON_OLDEST <= tuple(map(int, version.split("."))) <= PYTHON_NEWEST
    # A system upgrade can put another Python under the environment's packages.
    if not supported or stamp.get("python") not in (None, version):
        return f"is for Python {stamp.get('python', version)}"
    return None if same_path(Path(prefix), folder) else "was made in another folder"


def ask_environment(root: Path) -> tuple[str, str] | None:
    """Python version and folder of `.venv` as it sees itself; None if it or its pip fails."""
    question = (
        "import importlib.util, sys; assert importlib.util.find_spec('pip');"
        "print('%d.%d' % sys.version_info[:2]); print(sys.prefix)"
    )
    try:
        answer = subprocess.run(
            [str(environment_python(root)), "-c", question],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=True,
            env=clean_environment(),
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0], answer[1]


def rerun(root: Path) -> NoReturn:
    """Run this script again with the same arguments inside `.venv`; never returns."""
    if os.environ.get(RERUN_MARK):
        raise SetupError(
            f"{environment_python(root)} does not run as the environment in "
            f"{root / ENVIRONMENT_FOLDER}; delete that folder and run the same command again"
        )
    script = str(Path(sys.argv[0]).resolve())
    command = [str(environment_python(root)), script, *sys.argv[1:]]
    environment = {**clean_environment(), RERUN_MARK: "1"}
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execve(command[0], command, environment)  # noqa: S606 - our own interpreter
    sys.exit(run_as_child(command, environment))


def run_as_child(command: Sequence[str], environment: dict[str, str] | None = None) -> int:
    """Run to the end and return the exit code: Windows has no exec that keeps the console.

    Ctrl+C reaches the child too, and the child says goodbye: the parent only waits for it.
    """
    with subprocess.Popen(command, env=environment) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue


# --- installing -------------------------------------------------------------------------------


def install(root: Path, requirements: str, say: Say) -> None:
    """Install the requirements file into `.venv`, torch first where it comes from elsewhere."""
    began = time.monotonic()
    upgrade = ["install", "--upgrade", f"pip=={PIP_VERSION}"]
    code, lines = pip(root, upgrade, say, "updating pip")
    # An old pip installs as well, only slower: without this version in a mirror we go on.
    if code and NETWORK_SIGNS.search("\n".join(lines)):
        raise SetupError(explain_failure(lines, setup_log(root), "updating pip"))
    if wants_cuda_wheel():
        install_cuda_torch(root, requirements, say)
    say(f"Installing {requirements} (2 to 10 minutes, once) ...")
    pip_or_explain(root, ["install", "-r", str(root / requirements)], say, "installing")
    say(f"Installed in {time.monotonic() - began:.0f} s; the next run skips this.")


def install_cuda_torch(root: Path, requirements: str, say: Say) -> None:
    """Windows with an NVIDIA card: torch from PyTorch's own index, everything else from PyPI."""
    version = torch_pin(root, requirements)
    build = cuda_build(*nvidia_card())
    say(f"NVIDIA card found: taking torch {version} for CUDA from {TORCH_INDEX}{build}")
    say("  (about 2.5 GB, 5 to 20 minutes, once) ...")
    # With the build in the version, a CPU torch that is already there gets replaced.
    arguments = ["install", f"torch=={version}+{build}", "--index-url", TORCH_INDEX + build]
    pip_or_explain(root, arguments, say, "installing torch")


def torch_pin(root: Path, requirements: str) -> str:
    for name in included_files(root, requirements):
        found = re.search(r"^torch==([\w.]+)", (root / name).read_text("utf-8-sig"), re.MULTILINE)
        if found:
            return found.group(1)
    raise SetupError(f"{requirements} does not pin torch==...; restore it from the repository")


def pip_or_explain(root: Path, arguments: Sequence[str], say: Say, what: str) -> None:
    code, lines = pip(root, arguments, say, what)
    if code:
        raise SetupError(explain_failure(lines, setup_log(root), what))


def pip(root: Path, arguments: Sequence[str], say: Say, what: str) -> tuple[int, list[str]]:
    """Run pip of `.venv` with the user's own configuration (mirrors, proxies, certificates)."""
    verb, *rest = arguments
    # --no-user: `user = true` in somebody's pip.conf would make every virtual environment fail.
    flags = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--no-user"]
    command = [str(environment_python(root)), "-m", "pip", verb, *flags, *rest]
    # `-e .` and `./wheels` in a requirements file mean the folder that pip runs in.
    return run_logged(command, setup_log(root), say, what, folder=repository(root))
