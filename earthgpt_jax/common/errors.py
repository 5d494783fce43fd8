"""The exceptions whose message is meant for the user."""

# Exit statuses that are not defects and not for the user to mend.
EXIT_RETRY = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
EXIT_INTERRUPTED = 128 + 2  # what a shell reports for SIGINT


class EarthGPTError(Exception):
    """Something the user can mend: the message says where, what was expected, what came, and what to do.

    The command line prints it as a single `error: ...` line and exits with status 2; anything else
    that escapes is a defect of ours and keeps its traceback.
    """


class RetryableError(EarthGPTError):
    """Nothing is wrong with what the user gave: the same command may go on from where it was.

    The command line exits with status `EXIT_RETRY`, upon which the launchers in `scripts/launch/` start it again.
    """


class DamagedRecordError(EarthGPTError):
    """A record that its shard does not give back; the dataset's others may be well, and can be used without it."""


class RunStopped(Exception):
    """A run ended before its end because it was told to, with everything it had on disk; `status` is for the shell."""

    def __init__(self, message: str, *, status: int):
        super().__init__(message)
        self.status = status
