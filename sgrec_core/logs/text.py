"""Text that tables hold."""

import json
from typing import Any


def canonical_json(values: dict[str, Any]) -> str:
    """JSON whose text depends on the content alone: sorted keys, no spaces, characters as they are."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def storable(text: str) -> str:
    """``text`` as any UTF-8 table can hold it: what is no text is written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
