"""The errors that users see.

A message names what was wrong (file, row, column, value), and what would be valid. Jobs print the message as one
line and exit with ``exit_code``, which tells Airflow that trying again changes nothing; anything else that escapes is a
crash, keeps its traceback, exits with 1 and is tried again.
"""


class SgrecError(Exception):
    """Base of all errors whose message is written for the user."""

    exit_code = 2


class SettingsError(SgrecError):
    """A setting, or the environment, is not what the stage needs."""


class InputError(SgrecError):
    """A file or folder that the user named cannot be used."""


class NotReadyError(SgrecError):
    """Something is not there yet. Worth another try later, so it exits as a crash does."""

    exit_code = 1


class ContractError(SgrecError):
    """Rows break the contract of the table that they were about to be published to."""


class JudgeGoneError(SgrecError):
    """The judge's server answers nothing any more. Worth another try later, so it exits as a crash does."""

    exit_code = 1

    def __init__(self, reason: str):
        super().__init__(
            f"the judge no longer answers ({reason}); calls without an answer are rows with that reason and are tried"
            " again"
        )


class GateError(SgrecError):
    """A quality gate stopped the night; tables and champion stay as they were."""

    exit_code = 3
