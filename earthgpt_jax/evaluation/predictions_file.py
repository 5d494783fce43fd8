"""Predictions on disk: a JSON Lines file with one header line, then one `Prediction` per line.

The header is `{"header": {"format_version": 2, ...}}`. It may also say how many questions were asked (`questions`) and
the digests of the questions and their true answers (`questions_digest`) and of the complete ground truth
(`truth_digest`: also objects, references, image sizes and synonyms); all are then checked before scoring.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common import typed
from earthgpt_jax.common.digests import fingerprint
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_text
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.evaluation.predictions import Prediction

FORMAT_VERSION = 2

# What the model gave; all other fields are the question and its ground truth.
_ANSWER_FIELDS = ("prediction", "box_format", "frame", "confidences", "token_lengths", "logprobs", "steps", "stretch")
_OPTIONAL = ("token_lengths", "logprobs", "steps", "stretch")  # left out of a line where empty


def header_line(header: Mapping[str, Any]) -> str:
    """Return the first line of a file, with its line break; adds the format version."""
    return json.dumps({"header": {"format_version": FORMAT_VERSION, **header}}) + "\n"


def to_line(prediction: Prediction) -> str:
    """Return the line of one prediction, with its line break."""
    values = dataclasses.asdict(prediction)
    present = {name: value for name, value in values.items() if value or name not in _OPTIONAL}
    return json.dumps(present, ensure_ascii=False) + "\n"


def read(path: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """Read the header, without its format version, and all complete lines.

    An incomplete last line, left by a process that was killed while writing, is ignored.

    Raises:
        EarthGPTError: the file cannot be read, is not a predictions file of this version, or answers a question twice;
            the message names the line.
    """
    try:
        # As bytes: the last line may end within a character.
        complete, _, _ = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise EarthGPTError(f"predictions {path}: cannot be read ({error})") from error
    values = []
    for number, line in enumerate(complete.split(b"\n"), start=1):
        values.append(parse_json(line, where=f"{path}, line {number}", advice="is it a predictions file?"))
    header = _header(values[0], path)
    first_lines: dict[str, int] = {}
    predictions = []
    for number, value in enumerate(values[1:], start=2):
        predictions.append(typed.check(Prediction, value, where=f"{path}, line {number}"))
        first = first_lines.setdefault(predictions[-1].id, number)
        if first != number:
            raise EarthGPTError(
                f"{path}, line {number}: {predictions[-1].id} is already answered in line {first}; each question "
                "counts once, so delete one of the two lines"
            )
    return header, predictions


def is_predictions_file(path: Path) -> bool:
    """Return whether a file begins like a predictions file of this project; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip().startswith(b'{"header"')
    except OSError:
        return False


def _header(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("header"), dict):
        raise EarthGPTError(
            f"{path}: expected a predictions file, whose first line is "
            f'{{"header": {{"format_version": {FORMAT_VERSION}}}}}'
        )
    header = dict(value["header"])
    version = header.pop("format_version", 1)
    if version != FORMAT_VERSION:
        raise EarthGPTError(
            f"{path}: expected a predictions file of format {FORMAT_VERSION}, got format {version}. Run `earthgpt "
            "eval` again with a new --out, or, in a file that another program writes, rename the keys `kind` to "
            "`question_type` and `grammar` to `box_format`, write the frame `whole` as `image`, and put "
            f'"format_version": {FORMAT_VERSION} into the header'
        )
    return header


def write(path: Path, predictions: Sequence[Prediction], *, header: Mapping[str, Any]) -> None:
    """Write a complete file; the header also gets the number of the questions and the digests of their truth."""
    header = {
        **header,
        "questions": len(predictions),
        "questions_digest": digest(predictions),
        "truth_digest": truth_digest(predictions),
    }
    write_text(path, header_line(header) + "".join(map(to_line, predictions)))


def digest(predictions: Iterable[Prediction]) -> str:
    """Return the digest of the ids, texts and true answers of the questions, independent of their order."""
    return questions_digest((p.id, p.question, p.answer) for p in predictions)


def questions_digest(questions: Iterable[tuple[str, str, str]]) -> str:
    """Return the digest of questions given as (id, text, true answer), independent of their order."""
    lines = sorted(json.dumps(list(question)) for question in questions)
    return fingerprint("\n".join(lines))


def truth_digest(predictions: Iterable[Prediction]) -> str:
    """Return the digest of everything but the answers: objects, references, sizes and all other fields."""
    return fingerprint("\n".join(sorted(json.dumps(_ground_truth(p)) for p in predictions)))


def read_complete(path: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """Read the header and predictions of a file, and check that it answers all questions that its header declares.

    The header declares the number of questions (`questions`), their digest (`questions_digest`) and that of their
    ground truth (`truth_digest`); what it does not declare is not checked.

    Raises:
        EarthGPTError: the file cannot be read (see `read`); a question has no answer; a question or its ground truth
            was changed.
    """
    header, predictions = read(path)
    questions = header.get("questions")
    if questions is not None and questions != len(predictions):
        raise EarthGPTError(
            f"{path}: expected answers to {questions} questions, as its header says, got {len(predictions)}; run the "
            "same `earthgpt eval` command again to answer the missing ones"
        )
    expected, found = header.get("questions_digest"), digest(predictions)
    if expected is not None and expected != found:
        raise EarthGPTError(
            f"{path}: expected the questions and true answers with digest {expected}, as its header says, got {found}; "
            "an id, a question or a true answer was changed, or several files were joined"
        )
    expected, found = header.get("truth_digest"), truth_digest(predictions)
    if expected is not None and expected != found:
        raise EarthGPTError(
            f"{path}: expected the ground truth with digest {expected}, as its header says, got {found}; an object, a "
            "reference, an image size, a synonym or another field of the truth was changed. Run the same `earthgpt "
            "eval` command again with a new --out"
        )
    return header, predictions


def check_same_questions(
    predictions: Sequence[Prediction], reference: Sequence[Prediction], *, path: Path, reference_path: Path
) -> None:
    """Check that two files answer the same questions, each once and with the same ground truth.

    Raises:
        EarthGPTError: names ids that are missing, unknown, or whose question or ground truth differs.
    """
    by_id, reference_by_id = ({p.id: p for p in items} for items in (predictions, reference))
    check_same_ids(by_id, reference_by_id, path=path, reference_path=reference_path)
    differing = [name for name, p in by_id.items() if _ground_truth(p) != _ground_truth(reference_by_id[name])]
    if differing:
        raise EarthGPTError(
            f"{path}: {len(differing)} questions have another text or ground truth than in {reference_path}, for "
            f"example {differing[0]}; the two files are about different datasets, or about different builds of one "
            "dataset"
        )


def check_same_ids(ids: Iterable[str], reference: Iterable[str], *, path: Path, reference_path: Path) -> None:
    """Check that `ids` are those of the reference.

    Raises:
        EarthGPTError: names some ids that are missing or unknown.
    """
    found, expected = set(ids), set(reference)
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in (
            (expected - found, f"of {len(expected)} questions have no answer"),
            (found - expected, "ids are unknown"),
        )
        if names
    ]
    if problems:
        raise EarthGPTError(f"{path}: {'; '.join(problems)}; expected each question of {reference_path} once")


def _ground_truth(p: Prediction) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(p).items() if name not in _ANSWER_FIELDS}
