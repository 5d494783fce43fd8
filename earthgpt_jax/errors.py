"""The exceptions whose message is meant for the user."""


class EarthGPTError(Exception):
    """Something the user can mend: the message says where, what was expected, what came, and what to do.

    The command line prints it as a single `error: ...` line and exits with status 2; anything else
    that escapes is a defect of ours and keeps its traceback.
    """


class TryAgain(EarthGPTError):
    """Nothing is wrong with what the user gave: the same command may go on from where it was.

    The command line exits with status `AGAIN`, upon which the launchers in `scripts/launch/` start it again.
    """


AGAIN = 75  # EX_TEMPFAIL of sysexits.h


class DamagedRecord(EarthGPTError):
    """A record that its shard does not give back; the dataset's others may be well, and can be used without it."""
