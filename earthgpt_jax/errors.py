"""The exceptions whose message is meant for the user."""


class EarthGPTError(Exception):
    """Something the user can mend: the message says where, what was expected, what came, and what to do.

    The command line prints it as a single `error: ...` line and exits with status 2; anything else
    that escapes is a defect of ours and keeps its traceback.
    """


class DamagedRecord(EarthGPTError):
    """A record that its shard does not give back; the dataset's others may be well, and can be used without it."""
