"""Generated answers while a model is trained, scored with the metrics of an evaluation.

Validation otherwise reads the logits of the references. That cannot tell whether an answer with boxes overlaps the
objects, or how close a caption comes to any of several references.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding

from earthgpt_jax import distributed
from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config, FrozenDType
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.questions import Example, select_examples
from earthgpt_jax.evaluation.runner import answers, share_of
from earthgpt_jax.evaluation.scores import HEADLINE, score
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.validation_data import ValidationData
from earthgpt_jax.models.model_dir import ModelDir
from earthgpt_jax.params import Params
from earthgpt_jax.records import Record, Task
from earthgpt_jax.sharding.mesh import AXES

BATCH_SIZE = 32  # questions generated at a time by each process


class AnswerScorer:
    """Answer questions of the validation data with the parameters of a run, and score the answers.

    The questions are chosen once, by hashes: from the images with the smallest, in turn from each task. Each process
    answers its share of the images with all parameters, on its own devices.

    Attributes:
        figures: the headline metric of each task, for example `vqa/accuracy`.
        questions: the chosen ones.
    """

    def __init__(self, config: Config, data: ValidationData, *, tokenizer: Path, mesh: Mesh) -> None:
        """Choose the questions.

        Args:
            config: recipe of the run; `validation.answers` is the number of questions.
            data: the data that the run is validated on.
            tokenizer: first file of the tokenizer.
            mesh: the mesh of the run.

        Raises:
            EarthGPTError: parameters are int8; the devices of a process do not hold all parameters; none of the
                questions is of a task that is scored.
        """
        if config.frozen_dtype is FrozenDType.INT8:
            raise EarthGPTError("validation.answers: expected 0 with frozen_dtype=int8, which cannot generate answers")
        self._mesh = _mesh_of_process(mesh)
        self._model = ModelDir(
            name=config.recipe, path=tokenizer.parent, model=config.model, decimals=config.data.decimals,
            chat_template=config.data.chat_template, provenance={},
        )  # fmt: skip
        tasks = [task for task in Task if task in data.data.prompt_config.tasks]
        self.questions = _choose(_records(data), config.validation.answers, tasks=tasks, decimals=config.data.decimals)
        if not self.questions:
            raise EarthGPTError(
                f"validation.answers: the validation data has no question of the tasks {', '.join(Task)}; set it to 0"
            )
        chosen = {example.question.task for example in self.questions}
        self.figures = tuple(f"{task}/{metric}" for task, (metric, _) in HEADLINE.items() if task in chosen)

    def __call__(self, params: Params, *, heartbeat: Callable[[], None]) -> dict[str, float]:
        """Return the value of every figure. All processes call it and get the same result.

        Args:
            params: all parameters, placed on the mesh of the run.
            heartbeat: called after every answer.
        """
        local = {path: _of_process(value, self._mesh) for path, value in params.items()}
        engine = Engine(self._model, local, batch_size=BATCH_SIZE, mesh=self._mesh)
        texts: dict[str, str] = {}
        share = share_of(self.questions, index=jax.process_index(), count=jax.process_count())
        with distributed.fail_together("answering validation questions"):
            for answer in answers(engine, self.questions, share=share):
                texts[answer.id] = answer.text
                heartbeat()
        for part in distributed.gather_texts(json.dumps(texts)):
            texts |= json.loads(part)
        table = score(
            [Prediction.from_answer(item.record, item.question, texts[item.question.id]) for item in self.questions]
        )
        values = {f"{task}/{HEADLINE[task][0]}": groups["all"][HEADLINE[task][0]] for task, groups in table.items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}


def _records(data: ValidationData) -> Iterator[Record]:
    """Yield the records of the validation data, in the order of the hashes of their ids."""
    places = []
    for source, records in zip(data.data.schedule.sources, data.data.sources, strict=True):
        places += [(int(source.index.digests[i]), records, int(i)) for i in source.records]
    for _, records, i in sorted(places, key=lambda place: place[0]):
        yield records[i]


def _choose(records: Iterator[Record], count: int, *, tasks: Sequence[Task], decimals: int) -> list[Example]:
    """Return `count` questions about the first `count` images that can be read, in turn from each task."""
    chosen = list(itertools.islice(filter(_is_readable, records), count))
    examples = select_examples(chosen, decimals=decimals, per_image=dict.fromkeys(tasks, 1), tasks=tasks)
    by_task = [
        sorted((e for e in examples if e.question.task == task), key=lambda e: sha256(e.question.id)) for task in tasks
    ]
    in_turn = (example for turn in itertools.zip_longest(*by_task) for example in turn if example is not None)
    return list(itertools.islice(in_turn, count))


def _is_readable(record: Record) -> bool:
    try:
        load_square(record.image, 8, record.stretch)
    except EarthGPTError:
        return False
    return True


def _mesh_of_process(mesh: Mesh) -> Mesh:
    """Return the part of a mesh that belongs to this process.

    Raises:
        EarthGPTError: it does not hold all parameters.
    """
    local = mesh.local_mesh
    lacking = [axis for axis in AXES[1:] if local.shape[axis] != mesh.shape[axis]]
    if lacking:
        raise EarthGPTError(
            f"validation.answers: expected every process to hold all parameters, but the {lacking[0]} axis of the mesh "
            f"has {mesh.shape[lacking[0]]} devices, {local.shape[lacking[0]]} of them of this process; set it to 0, or "
            f"mesh.{lacking[0]} to the number of devices of a process"
        )
    return local


def _of_process(value: jax.Array, mesh: Mesh) -> jax.Array:
    """Return an array over the mesh of this process that shares its shards with `value`."""
    assert isinstance(value.sharding, NamedSharding)
    sharding = NamedSharding(mesh, value.sharding.spec)
    shards = [shard.data for shard in value.addressable_shards]
    return jax.make_array_from_single_device_arrays(value.shape, sharding, shards)
