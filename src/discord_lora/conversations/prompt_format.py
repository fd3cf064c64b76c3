"""The one prompt format: training and every chat front end render conversations here.

Persona: the persona's messages are assistant turns, everybody else's are user turns as
`Name: text`; neighbours of one role share a turn, a line each, so any chat template accepts them.
In ChatML, with the tokens that are trained between ^ marks:

    <|im_start|>system
    You are calm.heron ...<|im_end|>
    <|im_start|>user
    Ada: anyone up?
    Bob: barely<|im_end|>
    <|im_start|>assistant
    ^always
    what's up<|im_end|>^

Server voice: a transcript in which every member's message is trained, so that the model can go
on as any further member:

    You are one of the members ...

    Ada:^ anyone up?<|im_end|>^
    Bob:^ barely<|im_end|>^

A conversation is tokenized piece by piece, never as one string. So the prompt of a chat is token
for token a prefix of what training saw, and nothing a member writes can become a control token.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from discord_lora.conversations.build import READY_ASSISTANT, Conversation
from discord_lora.conversations.chat_template import ChatTemplate
from discord_lora.messages.record import Message

PROMPT_FORMAT_VERSION = 1
"""Raised whenever a change here would render the same conversation to other tokens."""

_WARM_UP_BATCH = 4096
"""Texts tokenized in one call; a million at once would take gigabytes."""

VoiceKind = Literal["persona", "server", "ready"]

_OPENING = "(...)"
"""Stands in the first user turn where the persona speaks first: many templates want a user."""


@dataclass(frozen=True, slots=True)
class Voice:
    """Whom the model speaks as."""

    kind: VoiceKind
    name: str
    speaker_id: str
    """Author id of the persona; in the server's voice the id under which the bot itself speaks."""
    system_prompt: str

    @property
    def learns_from(self) -> str:
        """Whose messages are the targets, in words."""
        return "everybody" if self.kind == "server" else self.name

    def is_target(self, message: Message) -> bool:
        """True if the model learns to write this message."""
        return message.train and (self.kind == "server" or message.author_id == self.speaker_id)


def server_voice(bot_name: str, system_prompt: str = "") -> Voice:
    prompt = system_prompt or "A Discord chat."
    return Voice("server", bot_name, "discord-lora-bot", prompt)


def persona_voice(name: str, author_id: str, system_prompt: str = "") -> Voice:
    prompt = system_prompt or f"You are {name}, chatting on Discord."
    return Voice("persona", name, author_id, prompt)


def ready_voice(bot_name: str, system_prompt: str = "") -> Voice:
    return Voice("ready", bot_name, READY_ASSISTANT, system_prompt)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens that is tokenized on its own."""

    token_ids: Sequence[int]
    trained: bool = False


@dataclass(slots=True)
class Encoded:
    """A rendered conversation: token ids and, for each, whether the loss is on it."""

    input_ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.input_ids.extend(piece.token_ids)
        self.trained.extend([piece.trained] * len(piece.token_ids))


class PromptFormat:
    """Renders conversations for one tokenizer and one voice."""

    def __init__(self, tokenizer: Any, voice: Voice) -> None:
        self.tokenizer = tokenizer
        self.voice = voice
        self.template = ChatTemplate.learn(tokenizer)
        self._text_ids: dict[str, list[int]] = {}
        self._control_ids: dict[str, list[int]] = {}
        # Alone, SentencePiece would put a space in front of it.
        word_alone = len(self._control("x"))
        self._newline = self._control("x\n")[word_alone:]
        # SentencePiece puts the space before a word by itself; byte-level BPE is given it.
        word = tokenizer.convert_ids_to_tokens(tokenizer("x", add_special_tokens=False).input_ids)
        self._space = "" if word and word[0].startswith("▁") else " "

    @property
    def end_of_turn_id(self) -> int:
        return self.template.end_of_turn_id

    @property
    def overhead(self) -> int:
        """Most tokens that the format spends besides the messages' own and the turns'."""
        head = sum(len(piece.token_ids) for piece in self._head(self.voice.system_prompt))
        transcript = self._control(self.template.beginning) + self._text(self.voice.system_prompt)
        return max(head, len(transcript) + 2) + len(self._text(_OPENING)) + self.turn_overhead

    @property
    def turn_overhead(self) -> int:
        """Most tokens that the format spends on one more message."""
        turns = (self.template.user_to_assistant, self.template.assistant_to_user)
        return 2 + max(len(self._control(turn)) for turn in turns)

    def warm_up(self, messages: Iterable[Message]) -> None:
        """Tokenize many messages at once: several times faster than one by one."""
        texts = {text for message in messages for text in self._texts(message)}
        missing = sorted(texts - self._text_ids.keys())
        for start in range(0, len(missing), _WARM_UP_BATCH):
            some = missing[start : start + _WARM_UP_BATCH]
            batch = self.tokenizer(
                some,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            self._text_ids.update(zip(some, batch.input_ids, strict=True))

    def forget_texts(self) -> None:
        """Free the tokens that `warm_up` keeps."""
        self._text_ids.clear()

    def message_length(self, message: Message) -> int:
        """Tokens of one message, its name included, without the turn around it."""
        return sum(len(self._text(text)) for text in self._texts(message))

    def text_length(self, text: str) -> int:
        return len(self._text(text))

    def encode(self, conversation: Conversation, first_target: int = 0) -> Encoded:
        """Render a conversation for training.

        Args:
            conversation: at least one message.
            first_target: messages before this index are context, whoever wrote them.
        """
        encoded = Encoded()
        for piece in self._pieces(conversation, first_target, complete=True):
            encoded.add(piece)
        return encoded

    def encode_prompt(self, conversation: Conversation) -> list[int]:
        """Render what has been said so far, up to where the voice begins to speak."""
        encoded = Encoded()
        for piece in self._pieces(conversation, len(conversation.messages), complete=False):
            encoded.add(piece)
        return encoded.input_ids

    def names_of_others(self, conversation: Conversation) -> set[str]:
        """Names of everybody but the voice, as the prompt shows them in front of a colon."""
        authors = {
            message.author
            for message in conversation.messages
            if message.author_id != self.voice.speaker_id
        }
        return {_shown_name(author) for author in authors if author} - {
            _shown_name(self.voice.name)
        }

    def decode_reply(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, the end-of-turn left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text.strip()

    # Tokenizing ----------------------------------------------------------------------------

    def _control(self, text: str) -> list[int]:
        """Tokens of the template's own text; special tokens are special."""
        if text not in self._control_ids:
            self._control_ids[text] = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self._control_ids[text]

    def _text(self, text: str) -> list[int]:
        """Tokens of what people write; `<|im_end|>` in it is nine letters and some signs."""
        if text not in self._text_ids:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            self._text_ids[text] = list(encoded.input_ids)
        return self._text_ids[text]

    def _texts(self, message: Message) -> tuple[str, ...]:
        content = message.content.strip()
        if self._is_transcript:
            return (f"{_shown_name(self._author(message))}:", self._space + content)
        if message.author_id == self.voice.speaker_id or not message.author:
            return (content,)
        return (f"{_shown_name(message.author)}: {content}",)

    def _author(self, message: Message) -> str:
        """The turns of ready conversations have no names; a transcript cannot do without."""
        is_voice = message.author_id == self.voice.speaker_id
        return message.author or (self.voice.name if is_voice else "User")

    # Rendering -----------------------------------------------------------------------------

    @property
    def _is_transcript(self) -> bool:
        """A model without a chat template gets the transcript for a persona, too."""
        return self.voice.kind == "server" or not self.template.has_turns

    def _pieces(
        self, conversation: Conversation, first_target: int, *, complete: bool
    ) -> Iterator[Piece]:
        targets = [
            index >= first_target and self.voice.is_target(message)
            for index, message in enumerate(conversation.messages)
        ]
        render = self._transcript if self._is_transcript else self._turns
        yield from render(conversation, targets, complete)

    def _system_prompt(self, conversation: Conversation) -> str:
        own = conversation.system_prompt
        return self.voice.system_prompt if own is None else own

    def _transcript(
        self, conversation: Conversation, targets: Sequence[bool], complete: bool
    ) -> Iterator[Piece]:
        yield Piece(self._control(self.template.beginning))
        system_prompt = self._system_prompt(conversation)
        if system_prompt:
            yield Piece(self._text(system_prompt) + self._newline * 2)
        for message, target in zip(conversation.messages, targets, strict=True):
            name, content = self._texts(message)
            yield Piece(self._text(name))
            yield Piece(self._text(content), target)
            yield Piece([self.end_of_turn_id], target)
            yield Piece(self._newline)
        if not complete:
            yield Piece(self._text(f"{_shown_name(self.voice.name)}:"))

    def _turns(
        self, conversation: Conversation, targets: Sequence[bool], complete: bool
    ) -> Iterator[Piece]:
        yield from self._head(self._system_prompt(conversation))
        in_assistant = in_target = False
        turn_is_empty = True
        for message, target in zip(conversation.messages, targets, strict=True):
            is_assistant = message.author_id == self.voice.speaker_id
            if is_assistant != in_assistant:
                if turn_is_empty:
                    yield Piece(self._text(_OPENING))
                yield from self._change_of_turn(in_assistant, in_target)
            elif not turn_is_empty:
                yield Piece(self._newline, target)
            yield Piece(self._text(self._texts(message)[0]), target)
            in_assistant, in_target, turn_is_empty = is_assistant, target, False
        if complete:
            yield Piece([self.end_of_turn_id], in_target)
        elif in_assistant:
            yield Piece(self._newline)
        else:
            if turn_is_empty:
                yield Piece(self._text(_OPENING))
            yield from self._change_of_turn(in_assistant, in_target)

    def _head(self, system_prompt: str) -> Iterator[Piece]:
        """Everything before the text of the first user turn."""
        template = self.template
        if system_prompt and template.has_system_turn:
            yield Piece(self._control(template.system_head))
            yield Piece(self._text(system_prompt))
            yield Piece(self._control(template.system_to_user))
            return
        yield Piece(self._control(template.head))
        if system_prompt:
            yield Piece(self._text(system_prompt) + self._newline * 2)

    def _change_of_turn(self, in_assistant: bool, in_target: bool) -> Iterator[Piece]:
        if not in_assistant:
            yield Piece(self._control(self.template.user_to_assistant))
            return
        end, *rest = self._control(self.template.assistant_to_user)
        yield Piece([end], in_target)
        yield Piece(rest)


@lru_cache(maxsize=4096)
def _shown_name(name: str) -> str:
    """A name that cannot be taken for the end of a line or of itself."""
    return re.sub(r"[\s:]+", " ", name).strip() or "someone"
