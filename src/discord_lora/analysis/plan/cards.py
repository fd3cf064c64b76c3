"""Graphics cards, by NVIDIA's data sheets and architecture papers."""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

Generation = Literal["Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell"]


@dataclass(frozen=True, slots=True)
class Card:
    """What of a card decides about time and memory."""

    name: str
    generation: Generation
    memory_gb: float
    tensor_tflops: float
    """Dense fp16 with fp32 accumulation."""
    bandwidth_gb_s: float

    @property
    def dtype(self) -> str:
        """bf16 from Ampere on; before, it is emulated."""
        return "fp16" if self.generation in ("Volta", "Turing") else "bf16"


CARDS = (
    Card("RTX 2060", "Turing", 6, 25.8, 336),
    Card("RTX 2070", "Turing", 8, 29.9, 448),
    Card("RTX 2080", "Turing", 8, 40.3, 448),
    Card("RTX 3070", "Ampere", 8, 40.6, 448),
    Card("RTX 3080", "Ampere", 10, 59.5, 760),
    Card("RTX 2080 Ti", "Turing", 11, 53.8, 616),
    Card("RTX 3060", "Ampere", 12, 25.5, 360),
    Card("RTX 4070", "Ada", 12, 58.3, 504),
    Card("RTX 5070", "Blackwell", 12, 61.7, 672),
    Card("Tesla T4", "Turing", 16, 65.0, 320),
    Card("Tesla V100", "Volta", 16, 125.0, 900),
    Card("RTX 4060 Ti", "Ada", 16, 44.1, 288),
    Card("RTX 4080", "Ada", 16, 97.5, 717),
    Card("RTX 5070 Ti", "Blackwell", 16, 87.9, 896),
    Card("RTX 5080", "Blackwell", 16, 112.6, 960),
    Card("A10", "Ampere", 24, 125.0, 600),
    Card("RTX 3090", "Ampere", 24, 71.0, 936),
    Card("RTX 4090", "Ada", 24, 165.2, 1008),
    Card("RTX 5090", "Blackwell", 32, 209.5, 1792),
    Card("A100", "Ampere", 40, 312.0, 1555),
    Card("H100", "Hopper", 80, 989.0, 3350),
)


def find_card(name: str) -> Card | None:
    """The card that is meant: `2080ti`, `RTX 2080 Ti` and `NVIDIA GeForce RTX 2080 Ti` are one."""
    wanted = _key(name)
    matching = [card for card in CARDS if _key(card.name) == wanted]
    return matching[0] if matching else None


def near_names(name: str) -> list[str]:
    """Names for an error message, the nearest first; all of them if none is near."""
    keys = {_key(card.name): card.name for card in CARDS}
    near = difflib.get_close_matches(_key(name), keys, n=3, cutoff=0.5)
    return [keys[key] for key in near] or [card.name for card in CARDS]


def _key(name: str) -> str:
    # Data centre cards say their memory in their name.
    without_size = re.sub(r"\b\d+ ?gb\b", "", name.lower())
    letters = "".join(c for c in without_size if c.isalnum())
    for word in ("nvidia", "geforce", "tesla", "rtx", "pcie", "sxm4", "sxm5", "sxm2", "hbm3"):
        letters = letters.replace(word, "")
    return letters
