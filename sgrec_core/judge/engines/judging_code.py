"""The code that a judge judges with, as its version covers it: what words prompts, decodes and reads answers."""

from sgrec_core.judge.request import ITEM_AND_STATE
from sgrec_core.runtime.code import code_digest

KNOWN_AS = {
    "621e1e0a516dcc10": "10069d870a8d5434",  # embedding
    "29dbf0656fd9720a": "4b9a6c44f6581b90",  # vllm, labels
    "c75d0887a037d40d": "0c1513d863093bfd",  # vllm, reasoning
    "c60f18a6b53b4067": "ebfab0a1f305e6ae",  # server, labels
    "397ea8395fe559d1": "aec5c9ae9a7a425f",  # server, reasoning
    "5d2e78798de56a79": "",  # the tiny model, of which no code was part
}
"""A digest of code that judges as before, to the digest that its judge is known by.

By these, digests that are made otherwise, or code that is moved so that they notice, make no other judge: no call is
paid again, and nights go on. Code that judges otherwise must not stand here. `tests/night/test_migrate.py` shows the
versions of the default judges.
"""


def judging_code(*definitions: str) -> str:
    """The digest that the code of a judge is known by: of ``definitions`` (as `code_digest`'s), and of the request."""
    return known_as(code_digest(*ITEM_AND_STATE, *definitions, locks=()))


def known_as(code: str) -> str:
    """The digest by which judges know ``code``."""
    return KNOWN_AS.get(code, code)
