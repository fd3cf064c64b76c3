"""Discord history in, a LoRA adapter that sounds like the server out."""

import logging
import os

__version__ = "0.1.0"

# On some CPUs it warns at import that a kernel which we do not use is not installed. It may be
# imported by others before any module of ours that needs it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# bitsandbytes has its kernels of last resort compiled, for which torch imports its compiler: a
# second of each start. Where its own library is missing, and only there, they would be used.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
