"""The few things that the bot says by itself, in words or as a reaction."""

APOLOGY = "Sorry, I lost my train of thought. Ask me again in a moment."
"""Where generating failed; once, until an answer works again."""

BUSY_SIGN = "\N{HOURGLASS WITH FLOWING SAND}"
"""Heard; the answer comes when there is room, and then this is taken off."""

HEARD_SIGN = "\N{EYES}"
"""Heard; there will be no answer."""
