"""What a model's own chat template writes around the texts, learned from the template itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What a model's chat template puts around the texts of the turns.

    Learned by rendering texts that occur nowhere else and looking at what stands between them.
    Trailing spaces are left out, because SentencePiece puts one before each text by itself.
    """

    beginning: str = ""
    """What every document begins with, such as `<s>`."""
    head: str = ""
    """Before the first user text, when there is no system turn."""
    system_head: str = ""
    system_to_user: str = ""
    user_to_assistant: str = ""
    assistant_to_user: str = ""
    end_of_turn_id: int = 0
    has_turns: bool = False
    has_system_turn: bool = False

    @classmethod
    def learn(cls, tokenizer: Any) -> "ChatTemplate":
        """Take the template apart.

        Raises:
            ValueError: the tokenizer has neither a template nor an end-of-text token.
        """
        first = tokenizer("x").input_ids[:1]
        beginning = tokenizer.bos_token if first == [tokenizer.bos_token_id] else ""
        turns = ["user", "assistant", "user", "assistant"]
        plain = _split_template(tokenizer, turns)
        if plain is None:
            if tokenizer.eos_token_id is None:
                raise ValueError("the tokenizer has no chat template and no end-of-text token")
            return cls(beginning=beginning or "", end_of_turn_id=tokenizer.eos_token_id)
        end_ids = tokenizer(plain[2], add_special_tokens=False).input_ids
        # `all_special_ids` holds only those with a role, such as bos; templates use others, too.
        added = tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        closes_with_token = bool(end_ids) and end_ids[0] in special
        end_of_turn_id = end_ids[0] if closes_with_token else tokenizer.eos_token_id
        system = _split_template(tokenizer, ["system", *turns])
        # Some templates (Mistral) move the system text into a user turn: then we put it there.
        has_system = system is not None and system[2] == plain[1] and system[1] != ""
        return cls(
            beginning=beginning or "",
            head=plain[0],
            system_head=system[0] if system and has_system else "",
            system_to_user=system[1] if system and has_system else "",
            user_to_assistant=plain[1],
            assistant_to_user=plain[2] if closes_with_token else tokenizer.eos_token + plain[2],
            end_of_turn_id=end_of_turn_id,
            has_turns=True,
            has_system_turn=has_system,
        )


_FIXED_DATE = "{% macro strftime_now(format) %}01 Jan 2026{% endmacro %}"


def _split_template(tokenizer: Any, roles: Sequence[str]) -> list[str] | None:
    """What the template writes before, between and after the texts; None if it cannot."""
    if not tokenizer.chat_template:
        return None
    texts = [f"Zq{number}{role}Zq" for number, role in enumerate(roles)]
    chat = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        # Today's date would make tomorrow's prompt another one than training saw.
        template = _FIXED_DATE + template
    try:
        rendered: str = tokenizer.apply_chat_template(
            chat, tokenize=False, chat_template=template, date_string="01 Jan 2026"
        )
    except Exception:  # templates raise what they like to refuse a role
        return None
    parts = re.split("|".join(texts), rendered)
    in_order = re.findall("|".join(texts), rendered) == texts
    return [part.rstrip(" ") for part in parts] if in_order else None
