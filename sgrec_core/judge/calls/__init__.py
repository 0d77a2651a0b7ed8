"""Calls to the judge: what a night asks, in which shards, at what price, and what is kept of the answers."""
