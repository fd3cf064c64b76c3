"""One talk, and its prompt by three ways: trainer, the bot from history, scripts/chat.py."""

import pytest

from discord_bot.discord_payloads import BOT_ID, Gateway, Said, account, snowflake
from discord_lora.conversations.build import build_conversations
from discord_lora.conversations.examples import Limits, make_examples
from discord_lora.conversations.prompt_format import PromptFormat, persona_voice
from discord_lora.discord_bot.channel_memory import ChannelMemory
from discord_lora.discord_bot.from_discord import seen_message
from discord_lora.inference.local_backend import LocalBackend
from discord_lora.inference.prompts import Prompts
from discord_lora.messages.prepare import PrepareOptions, prepare
from discord_lora.messages.training_data import read_training_data
from fakes import GEMMA_LIKE, MISTRAL_LIKE, make_tokenizer
from messages.example_exports import CHANNEL, export_text, user
from run_scripts import adapter_without_weights, run_here

# History sends no nicknames; here everybody is called as Discord calls the account.
ANN, CY = (user(n, nickname=f"Global user_{n}") for n in (0, 1))
HERON = user(5, name="heron", nickname="Heron")
VOICE = persona_voice("Heron", HERON["id"])
TALK = [
    Said(0, "hi there", author=ANN),
    Said(5, "hello Ann <|im_end|>", author=HERON),
    Said(10, "what's up\nyou two?", author=CY),
    Said(15, "not much\n😀", author=HERON),
    Said(20, "Heron: I am fine", author=ANN),
    Said(25, "you are?", author=HERON),
]


def of_the_trainer(tmp_path, tokenizer):
    """The tokens before each of Heron's answers, as they stand in the examples."""
    export = tmp_path / "export.json"
    export.write_text(export_text([said.as_exported() for said in TALK]), encoding="utf-8")
    prepare(PrepareOptions((export,), tmp_path / "data.jsonl"))
    messages = read_training_data(tmp_path / "data.jsonl").messages
    render = PromptFormat(tokenizer, VOICE)
    (example,) = make_examples(build_conversations(messages, 30), render, Limits(400, 32))
    learned = example.trained.tolist()
    starts = [at for at in range(1, len(learned)) if learned[at] and not learned[at - 1]]
    return [example.input_ids[:start].tolist() for start in starts]


def of_the_bot(prompts):
    gateway, memory = Gateway(), ChannelMemory(VOICE, str(BOT_ID), gap_minutes=30)
    bot = account(user(0, id=str(BOT_ID), name="heron-bot", isBot=True))
    for said in TALK:
        payload = said.payload()
        if said.author is HERON:
            payload["author"] = bot
        memory.saw(seen_message(gateway.from_history(payload), BOT_ID))
    asked = [said for said in TALK if said.author is not HERON]
    talks = [memory.conversation(CHANNEL["id"], snowflake(said.number)) for said in asked]
    return [prompts.encode(talk) for talk in talks]


class Recited:
    """In the place of the model: it says what Heron said, and keeps what it was asked."""

    voice = VOICE

    def __init__(self):
        self.lines = [said.typed for said in TALK if said.author is HERON]
        self.talks = []

    def stream(self, request, *, use_adapter):
        self.talks.append(request.conversation)
        yield self.lines[len(self.talks) - 1]

    def close_now(self):
        pass


def of_the_chat_script(monkeypatch, folder, prompts):
    backend = Recited()
    monkeypatch.setattr(LocalBackend, "load", lambda *_: backend)
    asked = [(said.author["nickname"], said.typed) for said in TALK if said.author is not HERON]
    lines = [line for who, text in asked for line in (f"/as {who}", text)]
    monkeypatch.setattr("builtins.input", typed(lines))
    assert run_here(monkeypatch, "scripts/chat.py", "--output-dir", folder, "--adapter", "ada") == 0
    return [prompts.encode(talk) for talk in backend.talks]


def typed(lines):
    left = iter(lines)

    def next_line(_prompt):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return next_line


@pytest.mark.parametrize("template", [None, MISTRAL_LIKE, GEMMA_LIKE])
def test_trainer_bot_and_chat_script_read_the_same_tokens(tmp_path, monkeypatch, template):
    tokenizer = make_tokenizer(*([template] if template else []))
    prompts = Prompts(tokenizer, VOICE, 400)
    expected = of_the_trainer(tmp_path, tokenizer)
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    adapter_without_weights(adapters, VOICE)
    assert len(expected) == 3
    assert of_the_bot(prompts) == expected
    assert of_the_chat_script(monkeypatch, adapters, prompts) == expected
