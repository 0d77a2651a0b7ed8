"""Training of the judge: labels, and adapters by supervised and reinforcement tuning."""
