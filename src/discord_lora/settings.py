"""Every setting: one typed field, one line in `.env.example`. The only reader of the environment.

A value comes from the first of: command line (`--max-steps 20`), environment, `.env`, default.
The defaults run the built-in sample model; `.env.example` is set for a real server.
"""

import argparse
import difflib
import io
import itertools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from discord_lora.console import UserError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseSettings):
    """All settings, validated. Make one with `load_settings`."""

    # What to learn from
    training_data_path: Path = Field(
        Path("data/training_data.jsonl"), description="messages, as prepare_training_data.py writes"
    )
    persona: str = Field(
        "", description="member to clone, by id, user name or nickname; empty: the server's voice"
    )
    bot_name: str = Field("Bot", description="name the bot speaks under in the server's voice")
    system_prompt: str = Field(
        "", description="what the model is told before each conversation; empty: one fitting line"
    )
    conversation_gap_minutes: float = Field(
        30.0, gt=0, le=1e6, description="minutes of silence in a channel that end a conversation"
    )
    validation_fraction: Fraction = Field(
        0.05, description="share of each channel's last messages held out to measure the loss"
    )
    max_validation_messages: int = Field(
        500, ge=0, description="held-out messages that are measured, evenly chosen; 0: all"
    )
    max_seq_length: int = Field(
        1024, ge=32, description="longest example in tokens; longer conversations are cut"
    )
    context_tokens: int = Field(
        32, ge=0, description="tokens of earlier talk repeated before a cut-off stretch"
    )

    # The model
    base_model: str = Field(
        "sample", description="Hugging Face name or folder; 'sample': the built-in SmolLM2-135M"
    )
    quantization: Literal["nf4", "none"] = Field(
        "nf4", description="nf4: 4-bit frozen weights (QLoRA); none: full precision"
    )
    hf_token: SecretStr = Field(
        SecretStr(""), description="Hugging Face token, only for gated models"
    )

    # The adapter
    lora_r: Positive = Field(16, description="rank of the LoRA matrices")
    lora_alpha: Positive = Field(32, description="LoRA scale; the update is times alpha / r")
    lora_dropout: Fraction = Field(0.0, description="share of LoRA inputs dropped in training")
    lora_target_modules: str = Field(
        "all-linear", description="'all-linear' or names such as q_proj,v_proj"
    )
    continue_from: Path | None = Field(
        None, description="adapter folder to train further, such as half an epoch more"
    )

    # The training
    epochs: float = Field(1.0, gt=0, le=1e4, description="passes over the data; fractions allowed")
    max_steps: int = Field(0, ge=0, description="stop after this many steps; 0: EPOCHS decides")
    batch_size: Positive = Field(1, description="messages a step = BATCH_SIZE x accumulation")
    gradient_accumulation_steps: Positive = Field(
        16, description="messages a step = BATCH_SIZE x this"
    )
    learning_rate: float = Field(
        2e-4, gt=0, le=1, description="2e-4 for a 7B model, about 1e-3 for the sample model"
    )
    lr_scheduler: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = Field("cosine", description="how the learning rate moves over the run")
    warmup_ratio: Fraction = Field(0.03, description="share of the steps in which it rises first")
    weight_decay: float = Field(0.0, ge=0, description="decay of the LoRA weights")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient norm is clipped here; 0: never")
    optimizer: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "auto", description="auto: paged 8-bit AdamW on a card, AdamW on the CPU"
    )
    gradient_checkpointing: Literal["true", "false", "auto"] = Field(
        "auto", description="recompute activations to save memory; auto: in as few layers as needed"
    )
    packing: bool = Field(
        True, description="several examples in one pass; false: one at a time, same result"
    )
    max_tokens_per_microbatch: Positive | Literal["auto"] = Field(
        "auto", description="tokens that go through the model at once; auto: as memory allows"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="same seed, same data order and dropout")

    # The replies
    temperature: float = Field(
        0.8, ge=0, description="how freely the bot picks words; 0: always the likeliest"
    )
    top_p: float = Field(0.95, gt=0, le=1, description="pick among words of this total likelihood")
    min_p: Fraction = Field(0.05, description="ignore words this much less likely than the best")
    repetition_penalty: float = Field(
        1.0, ge=1, description="above 1 makes words less likely that were just said"
    )
    max_reply_tokens: Positive = Field(200, description="longest reply in tokens")
    reply_time_limit_seconds: float = Field(
        120.0, gt=0, description="an answer that takes longer ends; without a first word it fails"
    )
    max_concurrent_replies: Positive = Field(
        8, description="channels answered at the same time; fewer if memory is short"
    )
    max_waiting_replies: Positive = Field(
        32, description="answers that may wait for their turn; further ones are turned away"
    )

    # Another server for the model
    inference_url: str = Field(
        "", description="OpenAI-compatible server that has the model, such as http://host:8080/v1"
    )
    inference_api_key: SecretStr = Field(
        SecretStr(""), description="key for INFERENCE_URL, if it wants one"
    )
    inference_model: str = Field(
        "", description="model's name at INFERENCE_URL; empty: the first that it lists"
    )

    # The run
    output_dir: Path = Field(Path("adapters"), description="adapters are written below this folder")
    run_name: str = Field("", description="folder of this run; empty: from persona and model")
    logs_dir: Path = Field(Path("logs"), description="training.log, metrics.jsonl, TensorBoard")
    save_every_steps: Positive = Field(50, description="steps between two checkpoints")
    log_every_steps: Positive = Field(10, description="steps between two lines in training.log")

    model_config = SettingsConfigDict(
        extra="forbid", env_ignore_empty=True, hide_input_in_errors=True, frozen=True
    )

    @property
    def messages_per_step(self) -> int:
        """Target messages that one optimizer step learns from, on average."""
        return self.batch_size * self.gradient_accumulation_steps

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _booleans_in_their_usual_spellings(cls, value: object) -> object:
        text = str(value).strip().lower()
        spellings = {"1": "true", "yes": "true", "on": "true"}
        return (spellings | {"0": "false", "no": "false", "off": "false"}).get(text, text)

    @field_validator("continue_from", mode="before")
    @classmethod
    def _empty_means_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("quantization", "lr_scheduler", "optimizer", mode="before")
    @classmethod
    def _choices_in_any_case(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("run_name")
    @classmethod
    def _run_name_is_one_folder(cls, value: str) -> str:
        if Path(value).name != value or value in {".", ".."} or any(c in value for c in '<>:"|?*'):
            raise ValueError("must be a plain folder name without slashes")
        return value

    @model_validator(mode="after")
    def _lengths_fit(self) -> "Settings":
        if self.context_tokens > self.max_seq_length // 2:
            raise ValueError("CONTEXT_TOKENS must be at most half of MAX_SEQ_LENGTH")
        return self


def load_settings(
    overrides: Mapping[str, Any] | None = None, env_file: Path | None = Path(".env")
) -> Settings:
    """Read all settings; `overrides` (field names) win over everything else.

    Raises:
        UserError: every problem there is, at once, each naming its key.
    """
    dotenv, problems = read_env_file(env_file)
    in_environment = {name.lower() for name, value in os.environ.items() if value}
    below_environment = {k: v for k, v in dotenv.items() if k not in in_environment}
    try:
        # pydantic-settings ranks what it is given over the environment, so `.env` hands over
        # only what the environment does not say.
        settings = Settings(**{**below_environment, **(overrides or {})})
    except ValidationError as error:
        problems += [_explain(entry) for entry in error.errors()]
        raise UserError(*problems) from None
    if problems:
        raise UserError(*problems)
    _hand_on_the_token(settings)
    return settings


def read_env_file(path: Path | None) -> tuple[dict[str, str], list[str]]:
    """Field values of a `.env` from any editor (BOM, UTF-16, CRLF, quotes), and its problems."""
    if path is None or not path.is_file():
        return {}, []
    text = _decode(path.read_bytes())
    values: dict[str, str] = {}
    problems = []
    seen: set[str] = set()
    for line in parse_stream(io.StringIO(_keep_backslashes(text))):
        where = f"line {line.original.line} of {path}"
        key, value = line.key, line.value
        if line.error:
            problems.append(f"{where} cannot be understood; write KEY=value and close each quote.")
        if line.error or key is None:
            continue
        field = key.strip().lower()
        if field not in Settings.model_fields:
            problems.append(f"{key}: unknown setting in {where}{_did_you_mean(key)}.")
        elif value is None:
            problems.append(f"{key}: has no value in {where}; write {key}=..., or remove it.")
        elif field in seen:
            problems.append(f"{key}: is there a second time in {where}; remove one of them.")
        elif value.strip():
            values[field] = value.strip()
        seen.add(field)
    return values, problems


def write_env(path: Path, values: Mapping[str, str]) -> Path | None:
    """Set keys of a `.env`, keeping its comments and its other lines; it is UTF-8 afterwards.

    Returns where the file as it was is kept, or None if there was none.

    Raises:
        UserError: it cannot be written.
    """
    backup, text = None, ""
    try:
        if path.is_file():
            backup = _unused(path.with_name(path.name + ".backup"))
            shutil.copy2(path, backup)  # with its rights: there may be a token in it
            text = _decode(path.read_bytes())
        path.write_text(_with_values(text, values), encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--write-env: cannot write {path} ({error}).") from None
    return backup


def _unused(path: Path) -> Path:
    """`path`, or with the first number that is free: an earlier copy may be the user's own."""
    numbered = (path.with_name(f"{path.name}{number}") for number in itertools.count(2))
    return next(it for it in itertools.chain([path], numbered) if not it.exists())


def _with_values(text: str, values: Mapping[str, str]) -> str:
    """dotenv's own `set_key` would drop the comment behind a value, and empty lines."""
    newline = "\r\n" if "\r\n" in text else "\n"
    for key, value in values.items():
        line = re.compile(
            rf"^([ \t]*(?:export[ \t]+)?{key}[ \t]*=)[^#\r\n]*?([ \t]+#[^\r\n]*)?(?=\r?$)",
            re.MULTILINE | re.IGNORECASE,
        )
        found = line.search(text)
        if found:
            text = (
                text[: found.start()] + f"{found[1]}{value}{found[2] or ''}" + text[found.end() :]
            )
        else:
            text += ("" if not text or text.endswith("\n") else newline) + f"{key}={value}{newline}"
    return text


def _decode(raw: bytes) -> str:
    """Text of a file written by Notepad, PowerShell (`>` writes UTF-16) or a Linux editor."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    if raw[1:2] == b"\0":
        return raw.decode("utf-16-le", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _keep_backslashes(text: str) -> str:
    r"""Double the backslashes of quoted paths: dotenv would read `"C:\new"` as a line break."""
    lines = []
    for line in text.splitlines():
        key, sign, value = line.partition("=")
        quoted = value.strip()[:1] in {'"', "'"}
        if sign and quoted and _is_path(key):
            line = key + sign + value.replace("\\", "\\\\")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _is_path(key: str) -> bool:
    field = key.strip().removeprefix("export ").strip().lower()
    info = Settings.model_fields.get(field)
    return field == "base_model" or (info is not None and "Path" in str(info.annotation))


def _did_you_mean(key: str) -> str:
    known = [name.upper() for name in Settings.model_fields]
    near = difflib.get_close_matches(key.strip().upper(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; .env.example lists all there are"


def _explain(entry: Any) -> str:
    """One sentence for one pydantic error, naming the key as the user writes it."""
    if not entry["loc"]:
        return str(entry["msg"]).removeprefix("Value error, ") + "."
    key = str(entry["loc"][0]).upper()
    if entry["type"] == "extra_forbidden":
        return f"{key}: unknown setting{_did_you_mean(key)}."
    reason = str(entry["msg"]).removeprefix("Value error, ")
    field = Settings.model_fields[key.lower()]
    return f"{key}: {reason[0].lower()}{reason[1:]} (it is: {field.description})."


def _hand_on_the_token(settings: Settings) -> None:
    """huggingface_hub reads its token from the environment; a `.env` entry must reach it."""
    token = settings.hf_token.get_secret_value()
    if token:
        os.environ["HF_TOKEN"] = token


def add_setting_options(
    parser: argparse.ArgumentParser, names: Sequence[str] | None = None
) -> None:
    """Give a script one `--option` a setting (all, or only those named), with help from it."""
    parser.add_argument(
        "--env-file", type=Path, metavar="FILE", help="read settings from FILE instead of .env"
    )
    group = parser.add_argument_group(
        "settings", "Each overrides the setting of the same name in .env and the environment."
    )
    for name in names or Settings.model_fields:
        field = Settings.model_fields[name]
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"{field.description} (default: {_shown_default(field.default)})".replace(
                "%", "%%"
            ),
        )


def _shown_default(value: object) -> str:
    if isinstance(value, SecretStr) or value is None or value == "":
        return "none"
    if isinstance(value, Path):
        return value.as_posix()
    return str(value).lower() if isinstance(value, bool) else str(value)


def script_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose `--help` teaches by example and that guesses at no abbreviation."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_with_settings(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Settings]:
    """Parse a script's own options and the settings together.

    Raises:
        UserError: unknown options, with the nearest known one, and all settings problems.
    """
    args, unknown = parser.parse_known_args(argv)
    known = [option for action in parser._actions for option in action.option_strings]
    problems = [_unknown_option(option, known) for option in unknown if option.startswith("-")]
    if unknown and not problems:
        problems = [f"unexpected argument {unknown[0]}; see --help."]
    given = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    try:
        settings = load_settings(given, _env_file(args))
    except UserError as error:
        raise UserError(*problems, *error.problems) from None
    if problems:
        raise UserError(*problems)
    return args, settings


def _env_file(args: argparse.Namespace) -> Path:
    chosen: Path | None = getattr(args, "env_file", None)
    if chosen is not None and not chosen.is_file():
        raise UserError(f"--env-file: there is no file {chosen}; copy .env.example to it.")
    return chosen or Path(".env")


def _unknown_option(option: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(option.partition("=")[0], known, n=1, cutoff=0.6)
    return f"{option}: unknown option; " + (f"did you mean {near[0]}?" if near else "see --help.")
