"""Raw logs: where they lie, where they come from, and how one row of them is read and judged.

``landing`` is the folder layout, ``simulator`` and ``adaptors`` write it, ``readers`` and ``parsing`` read it.
"""
