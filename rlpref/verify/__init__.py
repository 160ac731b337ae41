"""Our losses against those of an installed library, number by number."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its notice that some trainers may move; the version is pinned
