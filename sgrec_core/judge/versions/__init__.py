"""Versions of the judge: adapters, which of them nights may use, and the comparison that decides about that."""
