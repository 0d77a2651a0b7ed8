"""Commands that measure what the README claims: `make bench-...`, results under benchmarks/results/."""
