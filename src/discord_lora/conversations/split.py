"""Time-based split: the last part of each channel is held out to measure the loss."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from discord_lora.conversations.build import Conversation
from discord_lora.messages.record import Message

IsTarget = Callable[[Message], bool]


def split_conversations(
    conversations: Sequence[Conversation], fraction: float, is_target: IsTarget
) -> tuple[list[Conversation], list[Conversation]]:
    """Training and validation conversations; no conversation is on both sides.

    From the end of each channel whole conversations are held out until they hold `fraction` of
    its target messages. One that holds far more than that is first cut in two at its longest
    silence, so that a channel that never sleeps has a held-out part as well.
    """
    channels: dict[str, list[Conversation]] = defaultdict(list)
    for conversation in conversations:
        channels[conversation.channel_id].append(conversation)
    training: list[Conversation] = []
    validation: list[Conversation] = []
    for members in channels.values():
        kept, held_out = _split_channel(members, fraction, is_target)
        training += kept
        validation += held_out
    return training, validation


def _split_channel(
    conversations: Sequence[Conversation], fraction: float, is_target: IsTarget
) -> tuple[list[Conversation], list[Conversation]]:
    counts = {c.id: sum(map(is_target, c.messages)) for c in conversations}
    quota = fraction * sum(counts.values())
    # Split by start: what quotes or follows a held-out conversation is then held out as well.
    kept = sorted(conversations, key=lambda c: (c.start, c.id))
    held_out: list[Conversation] = []
    missing = quota
    while kept and missing > 0:
        count = counts[kept[-1].id]
        if count > 1.5 * missing and count > 1:
            kept[-1:], late = _cut_off(kept[-1], missing, is_target)
            held_out += late
            break
        if len(kept) == 1 or count / 2 > missing:
            break
        held_out.append(kept.pop())
        missing -= count
    return kept, held_out[::-1]


def _cut_off(
    conversation: Conversation, wanted: float, is_target: IsTarget
) -> tuple[list[Conversation], list[Conversation]]:
    """Cut where about `wanted` targets remain behind the cut, or not at all if that is none."""
    messages = conversation.messages
    behind = 0
    candidates = []
    for index in range(len(messages) - 1, conversation.quoted, -1):
        behind += is_target(messages[index])
        if behind > 1.5 * wanted:
            break
        if behind >= max(1.0, 0.5 * wanted):
            candidates.append(index)
    if not candidates:
        return [conversation], []
    cut = longest_silence(messages, candidates)
    return (
        [replace(conversation, messages=messages[:cut])],
        [replace(conversation, id=conversation.id + "b", messages=messages[cut:], quoted=0)],
    )


def longest_silence(messages: Sequence[Message], candidates: Sequence[int]) -> int:
    """The candidate index before which nobody spoke for the longest time; of equals the middle."""
    middle = (candidates[0] + candidates[-1]) / 2
    return max(
        candidates,
        key=lambda i: (messages[i].timestamp - messages[i - 1].timestamp, -abs(i - middle)),
    )
