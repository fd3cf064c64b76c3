"""How the bot writes: from the settings, and as `/settings` changes it until the next start."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from discord_lora.discord_bot.reply_messages import EDIT_DELAY_SECONDS
from discord_lora.inference.backend import Sampling
from discord_lora.settings import Settings


@dataclass(slots=True)
class Manner:
    """One for the whole bot, looked at for each answer."""

    sampling: Sampling
    reply_style: str
    reply_seconds: float
    edit_seconds: float = EDIT_DELAY_SECONDS

    @classmethod
    def from_settings(cls, settings: Settings) -> "Manner":
        sampling = Sampling.from_settings(settings)
        return cls(sampling, settings.reply_style, settings.reply_time_limit_seconds)

    def change(self, *, reply_style: str | None, **sampling: Any) -> None:
        """Change what is given; None leaves it as it is."""
        given = {name: value for name, value in sampling.items() if value is not None}
        self.sampling = replace(self.sampling, **given)
        self.reply_style = reply_style or self.reply_style

    def __str__(self) -> str:
        """A line a setting, as `.env` has it."""
        shown = {**asdict(self.sampling), "reply_style": self.reply_style}
        return "\n".join(
            f"{name.upper()}={value:g}" if isinstance(value, float) else f"{name.upper()}={value}"
            for name, value in shown.items()
        )
