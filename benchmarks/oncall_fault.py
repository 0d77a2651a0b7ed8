"""What a fault is, and the list of all of them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.oncall_world import World
from sgrec_core.hashing import digest

Act = Callable[[World], None]


class CannotBeMadeError(Exception):
    """This machine does not allow it; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How something goes wrong, and what a person does about it outside of sgrec."""

    name: str
    inject: Act
    """Before the night, or, with ``during``, once that stage has begun."""
    mend: Act | None = None
    during: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    """In the environment of the night, until it is mended."""
    runs: bool = True
    """Whether a night is begun at all."""

    @property
    def key(self) -> str:
        """Digest of its code, and of what stands above the first fault of its module."""
        source = inspect.getsourcefile(self.inject)
        assert source is not None
        with open(source) as file:
            helpers = file.read().split("\n@fault", 1)[0]
        texts = [inspect.getsource(one) for one in (self.inject, self.mend) if one is not None]
        return digest(helpers, *texts, self.during or "", repr(sorted(self.settings.items())))


FAULTS: dict[str, Fault] = {}
"""By name, as the labels call them."""


def fault(
    *, mend: Act | None = None, during: str | None = None, settings: Mapping[str, str] | None = None, runs: bool = True
) -> Callable[[Act], Act]:
    """Puts the function, which injects the fault, on the list under its name."""

    def note(inject: Act) -> Act:
        name = inject.__name__
        FAULTS[name] = Fault(
            name=name, inject=inject, mend=mend, during=during, settings=dict(settings or {}), runs=runs
        )
        return inject

    return note
