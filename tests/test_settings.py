import argparse
import re
from pathlib import Path

import pytest

from discord_lora.console import UserError
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser
from discord_lora.settings import Settings, env_file_values, ids_in, load_settings

EXAMPLE = Path(__file__).parents[1] / ".env.example"


def env(tmp_path, text, encoding="utf-8"):
    path = tmp_path / ".env"
    path.write_bytes(text.encode(encoding))
    return path


def test_env_example_holds_exactly_the_settings_there_are():
    keys = re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(keys) == sorted(name.upper() for name in Settings.model_fields)


def test_env_example_is_valid_and_set_for_a_real_server():
    settings = load_settings(env_file=EXAMPLE)
    assert settings.base_model == "mistralai/Mistral-7B-Instruct-v0.3"
    assert (settings.epochs, settings.batch_size, settings.gradient_accumulation_steps) == (
        1,
        1,
        16,
    )
    assert (settings.learning_rate, settings.gradient_checkpointing) == (2e-4, "true")


def test_env_example_explains_every_setting():
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#? ?[A-Z][A-Z0-9_]+=", line):
            assert lines[number - 1].startswith("# "), line


def test_command_line_over_environment_over_env_file_over_default(tmp_path, monkeypatch):
    path = env(tmp_path, "SEED=1\nMAX_STEPS=1\nEPOCHS=3\n")
    monkeypatch.setenv("SEED", "2")
    monkeypatch.setenv("MAX_STEPS", "2")
    settings = load_settings({"seed": "3"}, path)
    assert (settings.seed, settings.max_steps, settings.epochs) == (3, 2, 3.0)
    assert settings.batch_size == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_env_file_of_any_editor_is_read(tmp_path, encoding, newline):
    if encoding == "utf-16-be":
        text, encoding = "\ufeffPERSONA=Zoë\nMAX_STEPS=20\n", "utf-16-be"
    else:
        text = "PERSONA=Zoë\nMAX_STEPS=20\n"
    settings = load_settings(env_file=env(tmp_path, text.replace("\n", newline), encoding))
    assert (settings.persona, settings.max_steps) == ("Zoë", 20)


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_backslash_paths_survive(tmp_path, quote):
    path = env(tmp_path, f"TRAINING_DATA_PATH={quote}C:\\new\\table.jsonl{quote}\n")
    assert str(load_settings(env_file=path).training_data_path) == "C:\\new\\table.jsonl"


def test_quotes_and_comments_are_understood(tmp_path):
    path = env(tmp_path, '# mine\nexport BOT_NAME="Bo t" # who\nSYSTEM_PROMPT="a\\nb"\nSEED=\n')
    settings = load_settings(env_file=path)
    assert (settings.bot_name, settings.system_prompt, settings.seed) == ("Bo t", "a\nb", 42)


def test_all_problems_are_reported_at_once_each_naming_its_key(tmp_path):
    path = env(tmp_path, "EPOCH=1\nLEARNING_RATE=fast\nQUANTIZATION=int8\nLORA_R\nBATCH_SIZE=0\n")
    with pytest.raises(UserError) as caught:
        load_settings(env_file=path)
    keys = [problem.split(":")[0] for problem in caught.value.problems]
    assert sorted(keys) == ["BATCH_SIZE", "EPOCH", "LEARNING_RATE", "LORA_R", "QUANTIZATION"]
    assert "did you mean EPOCHS?" in str(caught.value)


def test_options_and_settings_problems_come_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = script_parser("x", "y")
    add_setting_options(parser)
    with pytest.raises(UserError) as caught:
        parse_with_settings(parser, ["--max-step", "5", "--seed", "x"])
    assert "--max-step: unknown option; did you mean --max-steps?" in caught.value.problems
    assert any(problem.startswith("SEED:") for problem in caught.value.problems)


def test_every_setting_is_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_setting_options(parser)
    _, settings = parse_with_settings(parser, ["--max-steps", "20", "--packing", "false"])
    assert (settings.max_steps, settings.packing) == (20, False)
    assert {action.dest for action in parser._actions} >= set(Settings.model_fields)


def test_a_secret_is_not_shown(tmp_path):
    settings = load_settings(env_file=env(tmp_path, "HF_TOKEN=hf_secret\n"))
    assert "hf_secret" not in repr(settings) + str(settings.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("true", "true"), ("True", "true"), ("1", "true"), ("no", "false"), ("AUTO", "auto")],
)
def test_booleans_are_taken_in_their_usual_spellings(text, meaning):
    assert Settings(gradient_checkpointing=text).gradient_checkpointing == meaning


def test_a_run_name_cannot_leave_its_folder():
    for name in ("../x", "a/b", "..", "c:\\x"):
        with pytest.raises(UserError, match="RUN_NAME"):
            load_settings({"run_name": name}, None)


def test_a_missing_env_file_is_no_problem(tmp_path):
    assert env_file_values(tmp_path / ".env") == ({}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('PERSONA="alice\nSEED=3\n', "line 1"),
        ("SEED: 3\n", "line 1"),
        ("SEED=1\nseed=3\n", "second time in line 2"),
    ],
)
def test_a_line_that_cannot_be_taken_is_never_passed_over(tmp_path, text, problem):
    with pytest.raises(UserError, match=problem):
        load_settings(env_file=env(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bot_owners", "Ann"),
        ("blocked_users", "1;2"),
        ("quiet_hours", "25:00-7:00"),
        ("quiet_hours", "always"),
        ("bot_timezone", "Europe/Nowhere"),
        ("bot_timezone", "../etc"),
        ("discord_api_base", "localhost:80"),
        ("discord_api_base", "http://"),
        ("inference_url", "localhost:8080"),
        ("inference_url", "http://[::1/v1"),
        ("inference_url", "http://host:port/v1"),
        ("inference_url", "http://two words/v1"),
        ("answer_to_name", "Will"),
        ("reply_style", "shout"),
        ("speak_up_probability", "1.5"),
    ],
)
def test_a_bot_setting_that_means_nothing_is_refused_by_its_key(name, value):
    with pytest.raises(UserError, match=rf"^{name.upper()}: "):
        load_settings({name: value}, None)


def test_bot_settings_are_read_as_people_write_them(tmp_path):
    text = (
        "BOT_OWNERS= 1 ,22, 333\nQUIET_HOURS=23:00 - 7:30\nREPLY_STYLE=Stream\n"
        "BOT_TIMEZONE=Europe/Berlin\nDISCORD_API_BASE=http://127.0.0.1:8080/\nBLOCKED_ROLES=\n"
    )
    settings = load_settings(env_file=env(tmp_path, text))
    assert ids_in(settings.bot_owners) == {"1", "22", "333"}
    assert ids_in(settings.blocked_roles) == frozenset()
    assert (settings.reply_style, settings.discord_api_base) == ("stream", "http://127.0.0.1:8080")


def test_no_token_shows_in_a_repr_or_an_error(tmp_path):
    settings = load_settings(env_file=env(tmp_path, "DISCORD_TOKEN=s3cr3t\nHF_TOKEN=\n"))
    shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    assert "s3cr3t" not in shown
    assert settings.discord_token.get_secret_value() == "s3cr3t"
    with pytest.raises(UserError) as raised:
        load_settings(env_file=env(tmp_path, "DISCORD_TOKEN=s3cr3t\nEPOCHS=many\n"))
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("HF_TOKEN=a\0b\n", "line 1 of .* holds a zero byte"),  # no environment takes it
        ("A=1\n" * 300_000, "far too long"),
        ("TEMPERATURE=inf\n", "TEMPERATURE: .*finite"),
        ("x" * 5_000 + "=1\n", "^x{60}: unknown setting"),
    ],
)
def test_what_is_no_file_of_settings_is_one_short_sentence(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        load_settings(env_file=env(tmp_path, text))
    assert len(caught.value.problems) == 1 and len(str(caught.value)) < 400


@pytest.mark.parametrize("line", ["not an assignment\n", "UNKNOWN=1\n"])
def test_a_thousand_problems_fit_on_a_screen(tmp_path, line):
    with pytest.raises(UserError, match="There is more of that") as caught:
        load_settings(env_file=env(tmp_path, line * 1000))
    assert len(caught.value.problems) == 21
