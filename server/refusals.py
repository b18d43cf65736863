"""Why a command of the operator is refused: a stable code, where, what with values, and what to do."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How dsan-server ends; docs/reference/commands.md has the list for all programs."""

    DONE = 0
    BAD_DATA = 65
    UNREACHABLE = 69
    FAILED = 70
    NOT_PERMITTED = 77
    BAD_CONFIGURATION = 78


class RefusedError(Exception):
    """A command that is not carried out. The codes are described in docs/reference/errors.md."""

    def __init__(self, code: str, where: str, message: str, fix: str, exit_code: ExitCode) -> None:
        super().__init__(f"error {code}: {where}: {message}. {fix}")
        self.code = code
        self.exit_code = exit_code
