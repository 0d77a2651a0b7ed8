"""sgrec: a night of recommendation logs becomes a better generative recommender (S-GRec, arXiv 2602.10606)."""

__version__ = "0.1.0"
