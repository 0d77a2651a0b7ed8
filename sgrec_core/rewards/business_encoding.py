"""Categories, brands and profile fields as numbers that a click model reads."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_MAX_PROFILE_KEYS = 8
_MAX_CATEGORIES = 200


@dataclass
class ProfileEncoding:
    """Categories and profile fields as numbers, fixed at the fit; a value that was not there is missing later."""

    vocabularies: dict[str, list[str]]
    numeric: list[str]

    @classmethod
    def fit(
        cls, profiles: Iterable[str | None], categories: Sequence[str | None], brands: Sequence[str | None]
    ) -> "ProfileEncoding":
        """Vocabularies of item category and brand and of the profile fields that most users have."""
        parsed = [profile_fields(text) for text in profiles]
        counts: dict[str, int] = {}
        for profile in parsed:
            for key in profile:
                counts[key] = counts.get(key, 0) + 1
        chosen = sorted(counts, key=lambda key: (-counts[key], key))[:_MAX_PROFILE_KEYS]
        vocabularies = {
            "item:category": _common(categories),
            "item:brand": _common(brands),
        }
        numeric = []
        for key in sorted(chosen):
            values = [profile[key] for profile in parsed if key in profile]
            if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
                numeric.append(key)
            else:
                vocabularies[f"profile:{key}"] = _common([str(value) for value in values])
        return cls(vocabularies, numeric)

    def encode(self, name: str, values: Sequence[str | None]) -> np.ndarray:
        """Positions of ``values`` in a vocabulary, NaN for one that is not in it: float64 [N]."""
        positions = {value: float(index) for index, value in enumerate(self.vocabularies[name])}
        return np.array([math.nan if value is None else positions.get(value, math.nan) for value in values])

    def encode_profiles(self, profiles: Sequence[str | None]) -> dict[str, np.ndarray]:
        """One column per profile field; a profile that many rows share is parsed once."""
        distinct = {text: index for index, text in enumerate(dict.fromkeys(profiles))}
        parsed = [profile_fields(text) for text in distinct]
        rows = np.array([distinct[text] for text in profiles], dtype=np.int64)
        columns: dict[str, np.ndarray] = {}
        for name in self.vocabularies:
            if name.startswith("profile:"):
                key = name.removeprefix("profile:")
                texts = [str(profile[key]) if key in profile else None for profile in parsed]
                columns[name] = self.encode(name, texts)[rows]
        for key in self.numeric:
            numbers = [profile.get(key) for profile in parsed]
            values = [float(n) if isinstance(n, (int, float)) else math.nan for n in numbers]
            columns[f"profile:{key}"] = np.array(values, dtype=np.float64)[rows]
        return columns


def profile_fields(text: str | None) -> dict[str, Any]:
    """The scalar fields of a JSON object; empty for none."""
    if not text:
        return {}
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    return {key: value for key, value in parsed.items() if isinstance(value, (str, int, float, bool))}


def _common(values: Sequence[str | None]) -> list[str]:
    """The most frequent values, sorted."""
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    return sorted(sorted(counts, key=lambda value: (-counts[value], value))[:_MAX_CATEGORIES])
