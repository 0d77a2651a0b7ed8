"""sgrec: a night of recommendation logs becomes a better generative recommender (S-GRec, arXiv 2602.10606)."""

import os

__version__ = "0.1.0"

# OpenMP threads spin at barriers by default. With anything else on the machine, two spinning torch threads ran eight
# times slower than one; threads that sleep lose nothing on a quiet machine. Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# Great Expectations reads it at import: nothing about a night leaves the machine.
os.environ["GX_ANALYTICS_ENABLED"] = "false"
