"""What was decided about the latest messages and what the latest answers came from: for `/why`."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from discord_lora.conversations.build import Conversation
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.discord_bot.when_to_speak import Decision
from discord_lora.messages.record import Message

DECISIONS = 20_000
"""Also what keeps a message from being taken up a second time when history shows it again."""

ANSWERS = 100
"""Each keeps its conversation, so that the prompt can be shown."""


@dataclass(eq=False, slots=True)
class AnswerRecord:
    """One answer: to what, out of what, and the messages it became."""

    question_id: str
    channel_id: str
    author_id: str
    """Whoever was answered."""
    conversation: Conversation | None
    """None before it was read, and once something in it may no longer be known."""
    decision: Decision
    message_ids: list[int] = field(default_factory=list)


class Journal:
    """The latest decisions and answers, bounded, oldest forgotten first."""

    def __init__(self) -> None:
        self._decisions: OrderedDict[str, Decision] = OrderedDict()
        self._answers: OrderedDict[str, AnswerRecord] = OrderedDict()

    def decided(self, seen: SeenMessage, decision: Decision) -> None:
        self._decisions[seen.id] = decision
        while len(self._decisions) > DECISIONS:
            self._decisions.popitem(last=False)

    def forget_decision(self, message_id: str) -> None:
        """It came to nothing: the message counts as not heard."""
        self._decisions.pop(message_id, None)

    def answered(self, record: AnswerRecord) -> None:
        """As soon as it is begun; also for an answer that is written anew."""
        self._answers[record.question_id] = record
        self._answers.move_to_end(record.question_id)
        while len(self._answers) > ANSWERS:
            self._answers.popitem(last=False)

    def forget(self, is_meant: Callable[[Message], bool]) -> None:
        """Keep no conversation that holds such a message."""
        for record in self._answers.values():
            if record.conversation and any(map(is_meant, record.conversation.messages)):
                record.conversation = None

    def decision(self, message_id: str) -> Decision | None:
        return self._decisions.get(message_id)

    def answer(self, message_id: str) -> AnswerRecord | None:
        """By the message that was answered, or by any message of the answer."""
        found = self._answers.get(message_id)
        if found is not None:
            return found
        its_own = (it for it in self._answers.values() if int(message_id) in it.message_ids)
        return next(its_own, None)

    def last_answer(self, channel_id: str) -> AnswerRecord | None:
        in_channel = (it for it in self._answers.values() if it.channel_id == channel_id)
        return next(reversed([*in_channel]), None)
