"""Exceptions whose message is meant for the user, the exit statuses they lead to, and detection of full disks."""

from __future__ import annotations

import errno
import os

# Exit statuses other than 0, 1 (a check found problems, or a failure outside of this program) and 2 (a user's mistake).
EXIT_RETRY = 75  # EX_TEMPFAIL of sysexits.h: rerun the same command to resume
EXIT_DEFECT = 70  # EX_SOFTWARE: running the same command again gives the same error
EXIT_INTERRUPTED = 128 + 2  # what a shell reports for SIGINT


class EarthGPTError(Exception):
    """An error that the user can fix; the message says where it is, what was expected, what was found, what to do.

    The command line prints it as one `error: ...` line and exits with status 2. Any other exception that reaches the
    top keeps its traceback: the status is `EXIT_DEFECT` if it shows a defect, and 1 if the system, storage or another
    host may have caused it.
    """


class RetryableError(EarthGPTError):
    """A failure that the same command may get past when it is run again, such as an unreachable coordinator.

    The command line exits with status `EXIT_RETRY`; the launchers in `scripts/launch/` then rerun the command.
    """


class DamagedRecordError(EarthGPTError):
    """A record that cannot be read from its shard; the other records of the dataset may still be readable."""


class RunStopped(Exception):
    """A run that ended early on request, after everything was saved.

    Attributes:
        status: exit status for the shell.
    """

    def __init__(self, message: str, *, status: int):
        super().__init__(message)
        self.status = status


_FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the device, quota exceeded


def find_full_disk(error: BaseException | None) -> BaseException | None:
    """Return the exception that reports a full disk or an exceeded quota: `error`, or one that caused it; else None.

    Searches causes, contexts and exception groups, and the text of messages, because checkpoint and record writers
    wrap the system's error or only quote its message.
    """
    seen: set[int] = set()
    pending = [error]
    while pending:
        candidate = pending.pop()
        if candidate is None or id(candidate) in seen:
            continue
        seen.add(id(candidate))
        text = str(candidate)
        if getattr(candidate, "errno", None) in _FULL or any(os.strerror(code) in text for code in _FULL):
            return candidate
        pending += [candidate.__cause__, candidate.__context__]
        if isinstance(candidate, BaseExceptionGroup):
            pending += candidate.exceptions
    return None
