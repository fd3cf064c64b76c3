"""`python src/bot.py` as a process of its own, on the loopback Discord, with a tiny adapter."""

import re
import signal
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from discord_lora.adapter_folder import find_adapter, read_run_info
from discord_lora.base_model import load_tokenizer
from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import PromptFormat
from discord_lora.discord_bot.channel_memory import RESET_NOTICE
from discord_lora.discord_bot.start_up import PERMISSIONS, PORTAL
from discord_lora.messages.record import Message
from discord_lora.model_location import locate_base_model
from discord_lora.sample import sample_chat_export
from fake_discord import Intents
from loopback import LOADING_SECONDS, SCRIPT, ended
from run_scripts import ROOT, run_here, start


def test_without_a_usable_token_one_sentence_says_where_to_click(server, launch, tmp_path):
    account = server.add_bot("Lora", privileged=Intents(0))
    for token, words in (
        ("", "DISCORD_TOKEN is empty"),
        ("no.such.token", "Discord refuses DISCORD_TOKEN"),
        (account.token, "switch on Message Content Intent"),
    ):
        code, _, error = ended(launch(token=token))
        assert code == 2 and words in error.replace("\n", " ") and PORTAL in error
        assert "Traceback" not in error and error.count("error:") == 1
        assert not token or token not in error
    assert server.gateway.connections == []


def test_a_dry_run_checks_everything_and_connects_to_nothing(
    server, adapters, tmp_path, monkeypatch, capsys
):
    account = server.add_bot("Lora")
    for name, value in {
        "DISCORD_TOKEN": account.token,
        "DISCORD_API_BASE": server.api_base,
        "OUTPUT_DIR": str(adapters),
        "LOGS_DIR": str(tmp_path / "logs"),
        "OPT_OUT_FILE": str(tmp_path / "opted_out.json"),
    }.items():
        monkeypatch.setenv(name, value)
    assert run_here(monkeypatch, SCRIPT, "--dry-run") == 0
    out, error = capsys.readouterr()
    assert error == ""
    link = re.search(r"https://discord\.com/oauth2/authorize\S+", out)[0]
    assert f"client_id={account.id}" in link and f"permissions={PERMISSIONS.value}" in link
    assert "Everything is ready to speak as Ada" in out
    assert server.gateway.connections == []


@pytest.mark.slow
def test_the_sample_model_trained_on_real_chat_streams_its_answers(server, launch, tmp_path):
    """Also: the prompt is the one that the trainer's function makes of the same messages."""
    adapters = train_on_the_sample_chat(tmp_path)
    owner, alice, bob = (server.add_user(name) for name in ("olga", "alice", "bob"))
    account = server.add_bot("Bison", owner=owner)
    channel = server.add_guild("Home").add_channel("general")
    server.enforce_rate_limits()
    process = launch(
        token=account.token, OUTPUT_DIR=str(adapters), REPLY_STYLE="stream", MAX_REPLY_TOKENS="60"
    )
    server.wait_until_connected(account, timeout=2 * LOADING_SECONDS)
    channel.say(bob, "what are we doing tonight?")
    question, answer = answered(
        channel, account, alice, "@Bison tell us everything!", mentions=[account]
    )
    reason = server.use_command(owner, channel, "why", message=str(answer.id))
    reason.wait_for_response()
    direct = server.open_dm(bob, account)
    thread = answer.start_thread(alice, "tonight")
    answered(channel, account, alice, "really?", reply_to=answer)
    answered(thread, account, bob, "who else comes?")
    answered(direct, account, bob, "hey")
    assert {it.reply_to.content for it in channel.by(account)} == {question.content, "really?"}
    every_command_works(server, channel, owner, answer)
    until_then = channel.messages[: channel.messages.index(question) + 1]
    asked = [message(it.author, it.content) for it in until_then]
    asked[1:] = [replace(it, content="@Bison tell us everything!") for it in asked[1:]]
    assert prompt_of_training(adapters, account, asked) in reason.wait_for_answer().content
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 130
    times = pairwise([answer.at, *(it.at for it in answer.edits)])
    texts = pairwise(["", *(it.content for it in answer.edits)])
    gaps = [
        later - before
        for (before, later), (shorter, longer) in zip(times, texts, strict=True)
        if longer.startswith(shorter)  # Regenerate begins anew, and at once
    ]
    assert all(gap > 1.0 for gap in gaps), (gaps, answer.edits)
    assert server.rate_limit_violations == 0
    for line in (*channel.messages, *direct.messages):
        print(f"{line.author.name}: {line.content}")


def answered(place, account, author, content, **more):
    """The question and its answer; asked anew where a model of six steps has nothing to say."""
    for _ in range(4):
        question = place.say(author, content, **more)
        with suppress(TimeoutError):
            return question, place.wait_for_message(account, reply_to=question, timeout=40)
    raise AssertionError(f"{content!r} was never answered")


def every_command_works(server, channel, owner, answer):
    """Used by the owner; what each does to the bot, tests/test_bot_commands.py looks at."""

    def told(used):
        used.wait_for_response()
        return used.wait_for_answer().content

    def says(used, expected):
        assert expected in told(used)

    # A model that has learned for six steps now and then has nothing else to say.
    tries = (told(server.use_message_command(owner, answer, "Regenerate")) for _ in range(5))
    assert "Written anew." in tries
    for name, options, expected in (
        ("status", {}, "Gentle Bison, adapter gentle.bison-sample"),
        ("persona", {}, "I speak as Gentle Bison."),
        ("settings", {"temperature": 0.5}, "TEMPERATURE=0.5"),
        ("quiet", {}, "Quiet here until /wake."),
        ("wake", {}, "Awake."),
        ("optout", {}, "no longer read"),
        ("optin", {}, "From now on I read what you write"),
        ("reload", {}, "I speak as Gentle Bison (gentle.bison-sample)."),
        ("reset", {}, RESET_NOTICE),
    ):
        says(server.use_command(owner, channel, name, **options), expected)
    says(server.use_message_command(owner, answer, "Delete"), "Deleted.")
    assert answer.deleted_at


def train_on_the_sample_chat(folder):
    """OUTPUT_DIR with an adapter of the built-in model, trained for some steps on real chat."""
    exports = sample_chat_export(ROOT, print)
    data = folder / "training_data.jsonl"
    options = ["--env-file", "scripts/quickstart.env", "--training-data-path", data]
    options += ["--output-dir", folder / "trained", "--logs-dir", folder / "logs"]
    options += ["--max-steps", 6, "--max-validation-messages", 8]
    for script, *words in (
        ("scripts/prepare_training_data.py", exports, "--out", data),
        ("training/train_lora.py", *options),
    ):
        process = start(script, *words)
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, out + error
    return folder / "trained"


def message(author, text):
    return Message(
        id=text, guild="", channel_id="", channel="", timestamp=datetime.now(UTC),
        author_id=str(author.id), author=author.global_name, content=text,
    )  # fmt: skip


def prompt_of_training(adapters, account, messages):
    """Rendered as training renders, the mention of the bot under the voice's name."""
    folder = find_adapter(adapters)
    info = read_run_info(folder)
    tokenizer = load_tokenizer(locate_base_model(info.base_model, print))
    last = messages[-1]
    renamed = replace(last, content=last.content.replace("@Bison", f"@{info.voice.name}"))
    render = PromptFormat(tokenizer, info.voice)
    token_ids = render.encode_prompt(Conversation("c", "c", (*messages[:-1], renamed)))
    return tokenizer.decode(token_ids)
