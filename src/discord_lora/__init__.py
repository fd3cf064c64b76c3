"""Discord history in, a LoRA adapter that sounds like the server out."""

__version__ = "0.1.0"
