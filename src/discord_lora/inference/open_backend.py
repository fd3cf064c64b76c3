"""Which backend answers: the model in this process, or another server."""

import asyncio
from pathlib import Path

from discord_lora.base_model import Report
from discord_lora.hardware import detect_hardware
from discord_lora.inference.backend import Backend
from discord_lora.inference.local_backend import Limits, LocalBackend
from discord_lora.inference.openai_backend import OpenAIBackend
from discord_lora.settings import Settings


async def open_backend(settings: Settings, folder: Path, report: Report) -> Backend:
    """The backend that the settings ask for, speaking with the adapter in `folder`.

    Raises:
        UserError: it cannot be had.
    """
    if settings.inference_url:
        return await OpenAIBackend.connect(settings, folder, report)
    limits = Limits.from_settings(settings)
    return await asyncio.to_thread(LocalBackend.load, folder, detect_hardware(), report, limits)
