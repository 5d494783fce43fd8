"""Run builds with Apache Beam, on any of its runners (Dataflow, Flink, Spark, or this machine).

Beam's workers run the same functions on the same files as the processes of `LocalEngine`. All of them must see the
native files and the output folder under the same paths; the elements of the pipeline are only file names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parallel import Function


class Beam:
    """A `common.parallel.Engine` that runs jobs with Apache Beam.

    Args:
        options: options of Beam, such as `--runner=DataflowRunner`; without any, Beam runs on this machine.

    Raises:
        EarthGPTError: apache_beam is not installed, or does not know an option.
    """

    def __init__(self, options: Sequence[str] = ()):
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise EarthGPTError(
                f"--beam: expected Apache Beam to be installed ({error}); pip install 'earthgpt-jax[beam]', "
                "or omit --beam to use processes of this machine"
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
                    | "Distribute" >> beam.Reshuffle()  # without this, a runner may give all jobs to one worker
                    | "Run" >> beam.Map(_run, function=function)
                )
        except Exception as error:
            # Beam appends text to a worker's error, and some runners wrap it in an error of their own.
            text = f"{type(error).__name__}: {error}"
            if match := re.search(rf"{EarthGPTError.__name__}: (.+?)(?: \[while running|$)", text, re.MULTILINE):
                raise EarthGPTError(match[1]) from error
            raise
        yield from jobs


def _run(job: str, function: Function) -> None:
    function(Path(job))
