"""Text that tables hold."""

import json
import math
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any


def canonical_json(values: dict[str, Any]) -> str:
    """JSON whose text depends on the content alone: sorted keys, no spaces, characters as they are."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain_json(value: Any) -> Any:
    """A value of any table as JSON has it: times as ISO 8601, decimals and bytes as text, no number for NaN or endless.

    Raises:
        TypeError: it is of another kind.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): plain_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(inner) for inner in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, timedelta)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    raise TypeError(f"a value of the type {type(value).__name__}")


def storable(text: str) -> str:
    """``text`` as any UTF-8 table can hold it: what is no text is written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def row_json(fields: dict[str, Any]) -> str:
    """A row of a table as a line of JSON that is read as the row itself would be: numbers stay numbers, bytes text."""
    try:
        return json.dumps(fields, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(fields), ensure_ascii=False, default=_plain)


def _plain(value: object) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know: none for NaN, which stands for nothing, and text for what is endless."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
