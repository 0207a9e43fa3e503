"""The stages of the pipeline, each a command: ``python -m tasks.<stage>``."""

import os

# Read by OpenMP when torch loads it: waiting threads must not spin on cores that others need.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
