"""Private data in the messages: how much of which kind, never the text itself.

A model may repeat what it has read. These patterns find what has a form of its own; names,
addresses and secrets told in words have none and are not found. Each message counts once a kind.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

Mask = npt.NDArray[np.bool_]

_PATTERNS: Final = {
    "email": r"(?i)\b[a-z0-9][a-z0-9._%+-]{0,63}@[a-z0-9][a-z0-9-]{0,62}(?:\.[a-z0-9-]{1,63})*"
    r"\.[a-z]{2,24}\b",
    # International, or national with separators: bare digits are too often something else.
    "phone_number": r"(?:^|[\s(:])(?:\+\d{1,3}[ ./-]?(?:\(?\d{1,4}\)?[ ./-]?){2,5}\d{2,4}"
    r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?:$|[\s).,;:!?])",
    # Of OpenAI and others, GitHub, Slack, AWS, Google, Hugging Face; JSON web tokens; PEM keys.
    "key_or_token": r"\b(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z]{30,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY",
    # Base64 of a user id, of a time, of a signature.
    "discord_token": r"\b[MNO][A-Za-z\d_-]{23,27}\.[A-Za-z\d_-]{6}\.[A-Za-z\d_-]{27,40}\b"
    r"|discord(?:app)?\.com/api/webhooks/\d+/[\w-]+",
    "password": r"(?i)\b(?:password|passwort|passwd|contraseña|mot de passe)\s*(?:[:=]|is\s)\s*\S",
    "ip_address": r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b",
    "payment_card": r"\b(?:4\d{3}|5[1-5]\d\d|6011|3[47]\d\d)(?:[ -]?\d{4}){2}[ -]?\d{3,4}\b",
    "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
    "coordinates": r"-?\b\d{1,2}\.\d{4,}\s*°?\s*[NS]?\s*[,;/ ]\s*-?\d{1,3}\.\d{4,}",
}

# With ASCII's word boundary the engine (Rust's: linear time) is several times faster.
KINDS: Final = {kind: it.replace(r"\b", r"(?-u:\b)") for kind, it in _PATTERNS.items()}
"""Kind → the pattern that finds it."""

_MAY_HOLD_ONE: Final = (
    r"\d{2}|\d\.\d\.|@|(?i:pass|contrase)|-----BEGIN|_|sk-|xox|AKIA|AIza|eyJ|[MNO][\w-]{23}"
    r"|/webhooks/"
)


def find_private_data(content: pl.Series) -> dict[str, Mask]:
    """For each kind, and for `any` of them, which messages hold it."""
    candidate = content.str.contains(_MAY_HOLD_ONE)
    found = (
        content.filter(candidate)
        .to_frame("text")
        .select(pl.col("text").str.contains(it).alias(kind) for kind, it in KINDS.items())
        .with_columns(any=pl.any_horizontal(pl.all()))
    )
    masks = {kind: np.zeros(len(content), np.bool_) for kind in found.columns}
    for kind, mask in masks.items():
        mask[candidate.to_numpy()] = found[kind].to_numpy()
    return masks
