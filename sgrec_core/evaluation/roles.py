"""The parts that models have in a night's comparison."""

SUPERVISED, OPTIMISED, CHAMPION, POPULARITY = ROLES = ("supervised", "optimised", "champion", "popularity")
"""The night's two candidates, what serves, and the floor."""
