"""Builds run by Apache Beam: the same functions on the same files, by whatever runner its options name.

What a function reads and writes is on a file system that all of Beam's workers share under the same paths; the
elements of a pipeline are names of files only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parallel import Function


class Beam:
    """An engine (`common.parallel.Engine`).

    Args:
        options: words as Beam's command line takes them, such as `--runner=DataflowRunner`; none: this machine.

    Raises:
        EarthGPTError: apache_beam is not installed, or does not know an option.
    """

    def __init__(self, options: Sequence[str] = ()):
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise EarthGPTError(
                f"--beam: expected Apache Beam to be installed ({error}); pip install 'earthgpt-jax[beam]', "
                "or leave --beam out to use the processes of this machine"
            ) from error
        unknown = [word for word in options if not word.startswith("--")]
        if unknown:
            raise EarthGPTError(f"--beam-options: expected --NAME=VALUE, got {' '.join(unknown)}")
        self._options = PipelineOptions(list(options))

    def run(self, function: Function, jobs: Sequence[Path]) -> Iterator[Path]:
        if not jobs:
            return
        import apache_beam as beam

        try:
            with beam.Pipeline(options=self._options) as pipeline:
                _ = (
                    pipeline
                    | "Jobs" >> beam.Create([str(job.absolute()) for job in jobs])
                    | "Spread" >> beam.Reshuffle()  # else a runner may keep them all on one worker
                    | "Run" >> beam.Map(_run, function=function)
                )
        except Exception as error:
            # A worker's error comes with more words behind it, from some runners within an error of their own.
            text = f"{type(error).__name__}: {error}"
            if said := re.search(rf"{EarthGPTError.__name__}: (.+?)(?: \[while running|$)", text, re.MULTILINE):
                raise EarthGPTError(said[1]) from error
            raise
        yield from jobs


def _run(job: str, function: Function) -> None:
    function(Path(job))
