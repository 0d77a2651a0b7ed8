"""A seeded marketplace that writes raw logs, and keeps the truth that no stage reads beside them."""
