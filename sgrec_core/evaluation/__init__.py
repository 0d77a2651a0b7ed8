"""Ranking metrics, their uncertainty, and the comparison of generators."""
