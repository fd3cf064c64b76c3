"""Graphics cards, by NVIDIA's data sheets and architecture papers."""

import difflib
import re
from dataclasses import dataclass, replace
from typing import Literal

Generation = Literal["Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell"]

ECC_SHARE = 15 / 16
"""Of GDDR6 that checks itself: nvidia-smi has 15,360 MiB for a T4 of 16 GB, 23,028 for an A10
of 24 (modal-labs/modal-client#2797). HBM keeps its check bits elsewhere."""

OF_TORCH = 0.98
"""The driver keeps the rest. Torch was seen to have 10.75 GiB of an RTX 2080 Ti, 23.5 of a 4090,
22.16 of an L4, 14.56 of a T4, 39.49 of an A100: this share or up to 1 % beside it."""

CPU = "cpu"
"""What is said instead of a name where no card is meant."""


@dataclass(frozen=True, slots=True)
class Card:
    """What of a card decides about time and memory."""

    name: str
    generation: Generation
    memory_gb: float
    tensor_tflops: float
    """Dense fp16 with fp32 accumulation."""
    bandwidth_gb_s: float
    has_ecc: bool = False
    """Out of this memory."""

    @property
    def usable_bytes(self) -> float:
        """What torch has of the memory."""
        return self.memory_gb * 2**30 * OF_TORCH * (ECC_SHARE if self.has_ecc else 1.0)

    @property
    def dtype(self) -> str:
        """bf16 from Ampere on; before, it is emulated."""
        return "fp16" if self.generation in ("Volta", "Turing") else "bf16"


CARDS = (
    Card("RTX 2060", "Turing", 6, 25.8, 336),
    Card("RTX 2060 Super", "Turing", 8, 28.7, 448),
    Card("RTX 2070", "Turing", 8, 29.9, 448),
    Card("RTX 2070 Super", "Turing", 8, 36.3, 448),
    Card("RTX 2080", "Turing", 8, 40.3, 448),
    Card("RTX 2080 Super", "Turing", 8, 44.6, 496),
    Card("RTX 3050", "Ampere", 8, 18.2, 224),
    Card("RTX 3060 Ti", "Ampere", 8, 32.4, 448),
    Card("RTX 3070", "Ampere", 8, 40.6, 448),
    Card("RTX 3070 Ti", "Ampere", 8, 43.5, 608),
    Card("RTX 4060", "Ada", 8, 30.2, 272),
    Card("RTX 5060", "Blackwell", 8, 38.4, 448),
    Card("RTX 3080", "Ampere", 10, 59.5, 760),
    Card("RTX 2080 Ti", "Turing", 11, 53.8, 616),
    Card("RTX 3060", "Ampere", 12, 25.5, 360),
    Card("RTX 3080 Ti", "Ampere", 12, 68.2, 912),
    Card("RTX 4070", "Ada", 12, 58.3, 504),
    Card("RTX 4070 Super", "Ada", 12, 71.0, 504),
    Card("RTX 4070 Ti", "Ada", 12, 80.2, 504),
    Card("RTX 5070", "Blackwell", 12, 61.7, 672),
    Card("Tesla T4", "Turing", 16, 65.0, 320, has_ecc=True),
    Card("Tesla V100", "Volta", 16, 125.0, 900),
    Card("RTX 4060 Ti", "Ada", 16, 44.1, 288),
    Card("RTX 4070 Ti Super", "Ada", 16, 88.2, 672),
    Card("RTX 4080", "Ada", 16, 97.5, 717),
    Card("RTX 4080 Super", "Ada", 16, 104.4, 736),
    Card("RTX 5060 Ti", "Blackwell", 16, 47.4, 448),
    Card("RTX 5070 Ti", "Blackwell", 16, 87.9, 896),
    Card("RTX 5080", "Blackwell", 16, 112.6, 960),
    Card("A10", "Ampere", 24, 125.0, 600, has_ecc=True),
    Card("L4", "Ada", 24, 121.0, 300, has_ecc=True),
    Card("RTX 3090", "Ampere", 24, 71.0, 936),
    Card("RTX 3090 Ti", "Ampere", 24, 80.0, 1008),
    Card("RTX 4090", "Ada", 24, 165.2, 1008),
    Card("RTX 5090", "Blackwell", 32, 209.5, 1792),
    Card("A100", "Ampere", 40, 312.0, 1555),
    Card("H100", "Hopper", 80, 989.0, 3350),
)

_SIZE = re.compile(r"\b(\d+) ?gi?b\b")


def find_card(name: str) -> Card | None:
    """The card that is meant: `2080ti`, `RTX 2080 Ti` and `NVIDIA GeForce RTX 2080 Ti` are one.

    A size in the name (`A100 80GB`) is the memory that is meant; all else is the table's.
    """
    wanted = _key(name)
    card = next((card for card in CARDS if _key(card.name) == wanted), None)
    size = _SIZE.search(name.lower())
    if card is None or size is None or float(size[1]) == card.memory_gb:
        return card
    return replace(card, name=f"{card.name} {size[1]} GB", memory_gb=float(size[1]))


def is_cpu(name: str) -> bool:
    """True if what is asked for is the processor, and not a card."""
    return name.strip().lower() == CPU


def near_names(name: str) -> list[str]:
    """Names for an error message, the nearest first; all of them if none is near."""
    keys = {_key(card.name): card.name for card in CARDS}
    near = difflib.get_close_matches(_key(name), keys, n=3, cutoff=0.5)
    return [keys[key] for key in near] or [*(card.name for card in CARDS), CPU]


def _key(name: str) -> str:
    letters = "".join(c for c in _SIZE.sub("", name.lower()) if c.isalnum())
    for word in ("nvidia", "geforce", "tesla", "rtx", "pcie", "sxm4", "sxm5", "sxm2", "hbm3"):
        letters = letters.replace(word, "")
    return letters
