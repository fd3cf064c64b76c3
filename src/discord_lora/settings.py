"""Every setting: one typed field, one line in `.env.example`. The only reader of the environment.

A value comes from the first of: command line (`--max-steps 20`), environment, `.env`, default.
The defaults run the built-in sample model; `.env.example` is set for a real server.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from discord_lora.console import UserError
from discord_lora.env_file import read_env_lines

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _ids_with_commas(value: str) -> str:
    if value.strip() and not re.fullmatch(r"\s*[0-9]+\s*(,\s*[0-9]+\s*)*", value):
        raise ValueError("write Discord ids, which are numbers, with commas between them")
    return value


IdList = Annotated[str, AfterValidator(_ids_with_commas)]
"""Discord ids with commas between; `ids_in` takes them apart."""


BOT_SETTINGS = (
    "discord_token",
    "bot_owners",
    "bot_channels",
    "speak_up_probability",
    "speak_up_cooldown_seconds",
    "cooldown_seconds",
    "answer_to_name",
    "answer_bots",
    "allowed_users",
    "blocked_users",
    "allowed_roles",
    "blocked_roles",
    "allowed_channels",
    "blocked_channels",
    "quiet_hours",
    "bot_timezone",
    "reply_style",
    "opt_out_file",
    "discord_api_base",
)
"""What only the bot reads (and OPT_OUT_FILE, whose effect shows in the data)."""

DEFAULT_BOT_NAME = "Bot"

MOST_PROBLEMS, MOST_SHOWN = 20, 60
"""Problems of a `.env`, and characters of a key in it: what is wrong has to fit on a screen."""

_TIME_OF_DAY = r"(?:[01]?\d|2[0-3]):[0-5]\d"


class Settings(BaseSettings):
    """All settings, validated. Make one with `load_settings`."""

    # What to learn from
    training_data_path: Path = Field(
        Path("data/training_data.jsonl"), description="messages, as prepare_training_data.py writes"
    )
    persona: str = Field(
        "", description="member to clone, by id, user name or nickname; empty: the server's voice"
    )
    bot_name: str = Field(
        DEFAULT_BOT_NAME, description="name the bot speaks under in the server's voice"
    )
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
    eval_every_steps: int = Field(
        0, ge=0, description="steps between two measurements of the held-out loss; 0: each epoch"
    )
    early_stopping_patience: int = Field(
        0, ge=0, description="stop after this many measurements without a better one; 0: never"
    )

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

    # The bot in Discord
    discord_token: SecretStr = Field(
        SecretStr(""), description="token of the bot, from Discord's developer portal"
    )
    bot_owners: IdList = Field("", description="ids of users who may use the owners' commands")
    bot_channels: IdList = Field(
        "", description="ids of channels where the bot speaks up by itself; elsewhere when asked"
    )
    speak_up_probability: Fraction = Field(
        0.05, description="chance of an unasked answer to a message in BOT_CHANNELS"
    )
    speak_up_cooldown_seconds: float = Field(
        60, ge=0, description="seconds in a channel from one unasked answer to the next"
    )
    cooldown_seconds: float = Field(
        0, ge=0, description="seconds from one answer to a member to the next; 0: none"
    )
    answer_to_name: bool = Field(
        True, description="answer whoever writes the bot's name; false: for names like Will"
    )
    answer_bots: bool = Field(False, description="answer other bots, three times in a row at most")
    allowed_users: IdList = Field("", description="ids of the only users answered; empty: all")
    blocked_users: IdList = Field("", description="ids of users who are never answered")
    allowed_roles: IdList = Field(
        "", description="ids of roles whose members are answered beside ALLOWED_USERS; empty: all"
    )
    blocked_roles: IdList = Field("", description="ids of roles whose members are never answered")
    allowed_channels: IdList = Field(
        "", description="ids of the only channels or categories the bot speaks in; empty: all"
    )
    blocked_channels: IdList = Field(
        "", description="ids of channels or categories the bot never speaks in"
    )
    quiet_hours: str = Field(
        "", description="when the bot is silent in servers, such as 23:00-07:30; empty: never"
    )
    bot_timezone: str = Field(
        "", description="time zone of QUIET_HOURS, such as Europe/Berlin; empty: this computer's"
    )
    reply_style: Literal["person", "stream", "plain"] = Field(
        "person", description="person: a message a line; stream: growing message; plain: at once"
    )
    opt_out_file: Path = Field(
        Path("data/opted_out.json"),
        description="members who opted out: neither learned from nor read by the bot",
    )
    discord_api_base: str = Field(
        "", description="address of a Discord-compatible server, for tests; empty: Discord"
    )

    # The run
    output_dir: Path = Field(Path("adapters"), description="adapters are written below this folder")
    run_name: str = Field("", description="folder of this run; empty: from persona and model")
    logs_dir: Path = Field(Path("logs"), description="training.log, history, report, TensorBoard")
    save_every_steps: Positive = Field(50, description="steps between two checkpoints")
    save_total_limit: int = Field(
        2, ge=2, description="newest checkpoints that are kept, beside the best one"
    )
    log_every_steps: Positive = Field(10, description="steps between two lines in training.log")
    sample_answers: int = Field(
        3, ge=0, le=20, description="held-out questions answered at each checkpoint; 0: none"
    )
    keep_awake: bool = Field(True, description="keep the computer from sleeping while it trains")

    model_config = SettingsConfigDict(
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        frozen=True,
        allow_inf_nan=False,
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

    @field_validator("quantization", "lr_scheduler", "optimizer", "reply_style", mode="before")
    @classmethod
    def _choices_in_any_case(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("run_name")
    @classmethod
    def _run_name_is_one_folder(cls, value: str) -> str:
        if Path(value).name != value or value in {".", ".."} or any(c in value for c in '<>:"|?*'):
            raise ValueError("must be a plain folder name without slashes")
        return value

    @field_validator("quiet_hours")
    @classmethod
    def _hours_are_a_span(cls, value: str) -> str:
        if value and not re.fullmatch(rf"{_TIME_OF_DAY} ?- ?{_TIME_OF_DAY}", value):
            raise ValueError("write from-to, such as 23:00-07:30")
        return value

    @field_validator("bot_timezone")
    @classmethod
    def _zone_is_known(cls, value: str) -> str:
        try:
            return value and ZoneInfo(value).key
        except (OSError, ValueError, KeyError):
            raise ValueError("is no time zone; write one such as Europe/Berlin") from None

    @field_validator("discord_api_base", "inference_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not _is_web_address(value):
            raise ValueError("write an address that begins with http:// or https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _lengths_fit(self) -> "Settings":
        if self.context_tokens > self.max_seq_length // 2:
            raise ValueError("CONTEXT_TOKENS must be at most half of MAX_SEQ_LENGTH")
        return self


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # Reading the port says whether it is one.
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return has_host and parts.scheme in {"http", "https"} and not re.search(r"\s", text)


def ids_in(listed: str) -> frozenset[str]:
    """The ids of a setting such as BLOCKED_USERS."""
    return frozenset(entry.strip() for entry in listed.split(",") if entry.strip())


def load_settings(
    overrides: Mapping[str, Any] | None = None, env_file: Path | None = Path(".env")
) -> Settings:
    """Read all settings; `overrides` (field names) win over everything else.

    Raises:
        UserError: every problem there is, at once, each naming its key.
    """
    dotenv, problems = env_file_values(env_file)
    above = set_in_environment(dotenv)
    below_environment = {name: value for name, value in dotenv.items() if name not in above}
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


def env_file_values(path: Path | None) -> tuple[dict[str, str], list[str]]:
    """Field values of a `.env`, and what is wrong with it."""
    if path is None or not path.is_file():
        return {}, []
    lines, problems = read_env_lines(path, holds_path)
    values: dict[str, str] = {}
    seen: set[str] = set()
    for key, value, where in lines:
        if len(problems) > MOST_PROBLEMS:
            break
        field = key.lower()
        key = key[:MOST_SHOWN]
        if field not in Settings.model_fields:
            problems.append(f"{key}: unknown setting in {where}{_did_you_mean(key)}.")
        elif value is None:
            problems.append(f"{key}: has no value in {where}; write {key}=..., or remove it.")
        elif field in seen:
            problems.append(f"{key}: is there a second time in {where}; remove one of them.")
        elif value.strip():
            values[field] = value.strip()
        seen.add(field)
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"There is more of that; is {path} a file of settings?"]
    return values, problems


def set_in_environment(names: Iterable[str]) -> list[str]:
    """Of these keys, those that the environment sets, whatever `.env` says."""
    given = {name.lower() for name, value in os.environ.items() if value}
    return [name for name in names if name.lower() in given]


def holds_path(key: str) -> bool:
    """True if the setting is a path, or may be one."""
    info = Settings.model_fields.get(key.lower())
    return key.lower() == "base_model" or (info is not None and "Path" in str(info.annotation))


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
