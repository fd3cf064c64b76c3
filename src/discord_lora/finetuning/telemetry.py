"""What the card says of itself while it works: temperature, power, memory, what slows it down.

NVIDIA's driver library (NVML) says it; a card without it, or a question that this card or system
does not answer (laptops, WSL, MIG), leaves out that figure and nothing else. Never measured on a
card by us: tested with a stand-in for the library.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml
import torch

from discord_lora.analysis.morning.history import POWER_LIMIT

Value = TypeVar("Value")

SLOWED_BY = {
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "heat",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "heat",
    pynvml.nvmlClocksEventReasonSwPowerCap: POWER_LIMIT,
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power supply",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware protection",
}
"""The reasons that mean slower work; the others (idle, clocks set by somebody) do not.
`hardware protection` comes with heat or power supply."""

HEAT_SECONDS = 180.0
"""Slowed by heat at each look for so long, the card is worth a word."""
HEAT_AGAIN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the card; None is what it does not tell."""

    celsius: int | None = None
    watts: float | None = None
    memory_bytes: int | None = None
    """In use by anybody."""
    throttled: tuple[str, ...] | None = None
    """What slows it down now, in words."""

    def event(self) -> dict[str, Any]:
        """For the history: the figures that there are; `throttled` in words, empty if it is not."""
        slowed = None if self.throttled is None else ", ".join(self.throttled)
        values = {"celsius": self.celsius, "watts": self.watts, "throttled": slowed}
        return {name: value for name, value in values.items() if value is not None}

    def words(self) -> str:
        """For a line of the log; empty without a card."""
        parts = []
        if self.celsius is not None:
            parts.append(f"{self.celsius} °C")
        if self.watts is not None:
            parts.append(f"{self.watts:.0f} W")
        if self.throttled:
            parts.append("slowed by " + ", ".join(self.throttled))
        return "  ".join(parts)


class CardWatch:
    """Reads one card."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self._handle = _handle(device) if device.type == "cuda" else None
        self._clock = clock
        self._hot_since: float | None = None
        self._told: float | None = None

    def read(self) -> Reading:
        """A look at the card, some milliseconds; nothing in it without one."""
        if self._handle is None:
            return Reading()
        milliwatts = _asked(pynvml.nvmlDeviceGetPowerUsage, self._handle)
        return Reading(
            celsius=_asked(
                pynvml.nvmlDeviceGetTemperature, self._handle, pynvml.NVML_TEMPERATURE_GPU
            ),
            watts=None if milliwatts is None else milliwatts / 1000,
            memory_bytes=_used_memory(self._handle),
            throttled=_throttled(self._handle),
        )

    def too_hot_for_long(self, reading: Reading) -> str:
        """A sentence once heat has slowed the card for minutes, at most one an hour; else empty."""
        now = self._clock()
        if "heat" not in (reading.throttled or ()):
            self._hot_since = None
            return ""
        if self._hot_since is None:
            self._hot_since = now
        for_long = now - self._hot_since >= HEAT_SECONDS
        if not for_long or (self._told is not None and now - self._told < HEAT_AGAIN_SECONDS):
            return ""
        self._told = now
        degrees = "" if reading.celsius is None else f" ({reading.celsius} °C)"
        return (
            f"the card has been slowing itself down for {round((now - self._hot_since) / 60)} "
            f"minutes because it is hot{degrees}; training goes on, only slower. Give it air, "
            "clean its fans, or lower its power limit (nvidia-smi -pl WATTS)"
        )


def _handle(device: torch.device) -> Any:
    """NVML's handle of this card, or None.

    By UUID, else by its place on the bus: CUDA numbers the cards in another order than NVML, and
    CUDA_VISIBLE_DEVICES leaves some out.
    """
    if not _succeeds(pynvml.nvmlInit):
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    uuid = getattr(properties, "uuid", None)
    for prefix in ("GPU-", "MIG-") if uuid is not None else ():
        handle = _asked(pynvml.nvmlDeviceGetHandleByUUID, f"{prefix}{uuid}")
        if handle is not None:
            return handle
    place = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if None in place:
        return None
    domain, bus, number = place
    bus_id = f"{domain:08x}:{bus:02x}:{number:02x}.0"
    return _asked(pynvml.nvmlDeviceGetHandleByPciBusId, bus_id)


def _succeeds(question: Callable[[], Any]) -> bool:
    try:
        question()
    except (pynvml.NVMLError, OSError):
        return False
    return True


def _asked(question: Callable[..., Value], *about: Any) -> Value | None:
    """The answer, or None where the card or the driver has none."""
    try:
        return question(*about)
    except (pynvml.NVMLError, OSError, ValueError):
        return None


def _used_memory(handle: Any) -> int | None:
    # The second version counts what the driver keeps for itself apart, as nvidia-smi does.
    memory = _asked(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is None:
        memory = _asked(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return None if memory is None else int(memory.used)


def _throttled(handle: Any) -> tuple[str, ...] | None:
    reasons = _asked(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:  # the name of drivers before 535
        reasons = _asked(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    if reasons is None:
        return None
    return tuple(dict.fromkeys(word for bit, word in SLOWED_BY.items() if reasons & bit))
