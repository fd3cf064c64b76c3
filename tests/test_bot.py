"""`python src/bot.py` as a process of its own, on the loopback Discord, with a tiny adapter."""

import re
import signal
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from discord_lora.adapter_folder import find_adapter, read_run_info
from discord_lora.base_model import load_tokenizer
from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import PromptFormat
from discord_lora.discord_bot.start_up import PERMISSIONS, PORTAL
from discord_lora.messages.record import Message
from discord_lora.model_location import locate_base_model
from discord_lora.sample import sample_chat_export
from fake_discord import FakeDiscord, Intents
from run_scripts import ROOT, run_here, start, tiny_model_folder, write_chat

SCRIPT = "src/bot.py"
LOADING_SECONDS = 60
COMMANDS = {
    "status", "persona", "reset", "optout", "optin", "quiet", "wake", "settings", "why", "reload",
    "Regenerate", "Delete",
}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """OUTPUT_DIR with one finished adapter of a tiny model."""
    folder = tmp_path_factory.mktemp("bot")
    words = [
        *("--training-data-path", write_chat(folder / "chat.jsonl")),
        *("--base-model", tiny_model_folder(folder)),
        *("--output-dir", folder / "adapters", "--logs-dir", folder / "logs"),
        *("--persona", "ada", "--quantization", "none", "--max-steps", "1"),
        *("--max-validation-messages", "4"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, "training/train_lora.py", *words) == 0
    return folder / "adapters"


@pytest.fixture
def server():
    with FakeDiscord() as server:
        yield server


@pytest.fixture
def launch(server, adapters, tmp_path):
    """Start the script; whatever still runs afterwards is ended."""
    started = []

    def launch(*words, token, **settings):
        environment = {
            "DISCORD_TOKEN": token,
            "DISCORD_API_BASE": server.api_base,
            "OUTPUT_DIR": str(adapters),
            "LOGS_DIR": str(tmp_path / "logs"),
            "OPT_OUT_FILE": str(tmp_path / "opted_out.json"),
            "REPLY_STYLE": "plain",
            "MAX_REPLY_TOKENS": "8",
            **settings,
        }
        started.append(start(SCRIPT, *words, **environment))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process):
    out, error = process.communicate(timeout=LOADING_SECONDS)
    return process.returncode, out.decode(), error.decode()


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


def test_a_dry_run_checks_everything_and_connects_to_nothing(server, launch):
    account = server.add_bot("Lora")
    code, out, error = ended(launch("--dry-run", token=account.token))
    assert (code, error) == (0, "")
    link = re.search(r"https://discord\.com/oauth2/authorize\S+", out)[0]
    assert f"client_id={account.id}" in link and f"permissions={PERMISSIONS.value}" in link
    assert "Everything is ready to speak as Ada" in out
    assert server.gateway.connections == []


def test_it_lives_in_discord_and_leaves_with_a_goodbye(server, launch, tmp_path):
    owner, alice = server.add_user("olga"), server.add_user("alice")
    account = server.add_bot("Lora", owner=owner)
    guild = server.add_guild("Home")
    channel = guild.add_channel("general")
    missed = channel.say(alice, "anybody? ada?")
    process = launch(token=account.token)
    server.wait_until_connected(account, timeout=LOADING_SECONDS)
    mention = channel.say(alice, "hello @Lora", mentions=[account])
    answer = channel.wait_for_message(author=account, reply_to=mention)
    reply = channel.say(alice, "why?", reply_to=answer)
    channel.wait_for_message(author=account, reply_to=reply)
    direct = server.open_dm(alice, account)
    direct.wait_for_message(author=account, reply_to=direct.say(alice, "hi"))
    thread = channel.start_thread(account, "tea")
    thread.wait_for_message(author=account, reply_to=thread.say(alice, "green?"))
    assert {it["name"] for it in account.commands[None]} == COMMANDS
    for name in ("status", "why"):
        it = server.use_command(owner, channel, name)
        it.wait_for_response()
        assert it.is_ephemeral and account.token not in it.wait_for_answer().content
    assert channel.by(account)[0].reply_to in (missed, mention)
    process.send_signal(signal.SIGINT)
    code, out, error = ended(process)
    assert code == 130 and "Said goodbye to Discord." in error
    assert server.gateway.closes[-1][1] == 1000
    log = (tmp_path / "logs" / "bot.log").read_text(encoding="utf-8")
    assert "answered" in log
    assert account.token not in log + out + error
    assert "hello" not in log  # what members write is no matter of the log


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
    question = channel.say(alice, "@Bison tell us everything!", mentions=[account])
    answer = channel.wait_for_message(author=account, reply_to=question, timeout=200)
    reason = server.use_command(owner, channel, "why", message=str(answer.id))
    reason.wait_for_response()
    direct = server.open_dm(bob, account)
    direct.wait_for_message(author=account, reply_to=direct.say(bob, "hey"), timeout=200)
    asked = [message(it.author, it.content) for it in channel.messages[:2]]
    asked[1] = replace(asked[1], content="@Bison tell us everything!")
    assert prompt_of_training(adapters, account, asked) in reason.wait_for_answer().content
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 130
    times = [answer.at, *(it.at for it in answer.edits)]
    assert all(later - before > 1.0 for before, later in pairwise(times))
    assert server.rate_limit_violations == 0
    for line in (*channel.messages, *direct.messages):
        print(f"{line.author.name}: {line.content}")


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
