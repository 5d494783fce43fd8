"""Describe a work directory or a checkpoint from its JSON files; no array is read.

Whether the arrays are intact is checked when they are restored (`checkpoints.Checkpoints.restore`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from earthgpt_jax.common import digests, typed
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json

# `format` in a checkpoint's metadata; raise it when a key, a kind of fingerprint or an array's path changes
CHECKPOINT_FORMAT = 3

_TEMPORARY = ".orbax-checkpoint-tmp"  # part of the name of a checkpoint that Orbax has not completed
METADATA = "extra/metadata"  # in the folder of a checkpoint
_REQUIRED_FILES = (METADATA, "state/_METADATA", "state/manifest.ocdbt")  # on a disk
_ITEM_BYTES = {"float32": 4, "int32": 4, "uint32": 4, "bfloat16": 2, "float16": 2}


class _Frozen(TypedDict):
    fingerprint: str
    dtype: str
    parent: dict[str, Any]


class _Metadata(TypedDict):
    arrays: dict[str, list[str | list[int]]]  # name -> dtype and shape
    checksums: dict[str, int]
    digest: str
    saved: str
    versions: dict[str, str]
    identity: NotRequired[dict[str, Any]]
    frozen: NotRequired[_Frozen | None]
    config: NotRequired[dict[str, Any]]
    data_position: NotRequired[int]
    state_folder: NotRequired[str]
    mesh: NotRequired[dict[str, int]]
    devices: NotRequired[str]


# The parts of a run's config that a summary shows.
class _RunConfig(TypedDict):
    recipe: str
    stage: str
    optim: dict[str, Any]
    data: dict[str, Any]
    init: NotRequired[str]
    init_from: NotRequired[dict[str, Any]]


class _Optim(TypedDict):
    steps: int


class _Data(TypedDict):
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of a run or a checkpoint.

    Attributes:
        title: its path, what it is, and its state.
        facts: `(name, text)`, printed below the title.
        intact: False if it is unfinished, damaged, or of another format.
    """

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    intact: bool = True

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.facts), default=0)
        return "\n".join([self.title, *(f"  {name:<{width}}  {text}" for name, text in self.facts)])


def inspect(path: Path) -> list[Summary] | None:
    """Summarise a run's work directory, its `checkpoints` folder or one checkpoint; None if it is none of these."""
    if _TEMPORARY in path.name and path.is_dir():
        return [_summarize_unfinished(path)]
    if path.name.isdigit() and ((path / "state").is_dir() or path.absolute().parent.name == "checkpoints"):
        if path in unfinished_checkpoints(path.parent):
            return [_summarize_unfinished(path)]
        return [_summarize_checkpoint(path)] if path.is_dir() else None
    if path.name == "checkpoints" and path.is_dir():
        return _summarize_checkpoints(path)
    config = _read_run_config(path / "config.json")
    if config is None:
        return None
    checkpoints = path / "checkpoints"
    return [_summarize_run(path, config), *(_summarize_checkpoints(checkpoints) if checkpoints.is_dir() else [])]


def unfinished_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` that are not complete: a save in progress, or one that was killed.

    On a disk, Orbax gives them temporary names; in a bucket they lack their metadata.
    """
    if isinstance(folder, BucketPath):
        return [path for path in _by_step(folder) if not (path / METADATA).is_file()]
    return sorted(path for path in folder.glob(f"*{_TEMPORARY}*") if path.is_dir()) if folder.is_dir() else []


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in `folder`, damaged ones included, in ascending order."""
    paths = _by_step(folder)
    if isinstance(folder, BucketPath):
        paths = [path for path in paths if (path / METADATA).is_file()]
    return [int(path.name) for path in paths]


def _by_step(folder: Path) -> list[Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if path.name.isdigit() and path.is_dir()), key=lambda path: int(path.name))


def metadata_digest(metadata: Mapping[str, Any]) -> str:
    """Return the digest of a checkpoint's metadata, without the field `digest` itself."""
    plain = json.loads(json.dumps({key: value for key, value in metadata.items() if key != "digest"}))
    return digests.sha256_json(plain)


def saved_format(metadata: Any) -> Any:
    """Return the format that metadata name; checkpoints of format 1 do not.

    Raises:
        EarthGPTError: they have changed since they were saved.
    """
    if not isinstance(metadata, dict):
        raise EarthGPTError(f"{METADATA} is not a JSON object")
    if "digest" in metadata and metadata["digest"] != metadata_digest(metadata):
        raise EarthGPTError(f"{METADATA} has changed since it was saved")
    return metadata.get("format", 1)


def check_metadata(metadata: Any) -> None:
    """Check the types of the metadata of a checkpoint of the current format.

    Raises:
        EarthGPTError: a field is missing or of another type.
    """
    typed.check(_Metadata, metadata, where=METADATA, further=True)
    for name, array in metadata["arrays"].items():
        if [type(value) for value in array] != [str, list]:
            raise EarthGPTError(f"{METADATA}: arrays.{name}: expected a dtype and a shape, got {typed.show(array)}")


def _summarize_checkpoints(folder: Path) -> list[Summary]:
    """Summarise the newest checkpoint in full, the older ones in one line each, and everything else in the folder."""
    summaries = [_summarize_checkpoint(folder / str(step)) for step in reversed(checkpoint_steps(folder))]
    if not summaries:
        summaries = [Summary(title=f"{folder}: no complete checkpoint; the run starts from the beginning")]
    older = [dataclasses.replace(summary, facts=()) if summary.intact else summary for summary in summaries[1:]]
    unknown = [
        Summary(title=f"{path}: not a checkpoint; ignored")
        for path in sorted(folder.iterdir())
        if not path.name.isdigit() and _TEMPORARY not in path.name
    ]
    return [summaries[0], *older, *map(_summarize_unfinished, unfinished_checkpoints(folder)), *unknown]


def _summarize_unfinished(path: Path) -> Summary:
    return Summary(
        title=f"{path}: UNFINISHED checkpoint: a save is in progress, or its run was killed during the save. It is "
        "never restored; the next start removes it",
        intact=False,
    )


def _summarize_run(path: Path, config: Mapping[str, Any]) -> Summary:
    saved = checkpoint_steps(path / "checkpoints")
    last = config["optim"]["steps"]
    if (path / "model" / "config.json").is_file():
        progress = f"finished after {last} steps; model{_step_of_model(path / 'model', last)}: {path / 'model'}"
    elif saved:
        progress = f"{saved[-1]} of {last} steps"
    else:
        progress = f"no checkpoint yet, {last} steps planned"
    return Summary(title=f"{path}: run of {_recipe(config)}, {progress}")


def _step_of_model(path: Path, last: int) -> str:
    """Return " of step N" for a model that is not of the last step."""
    try:
        step = parse_json((path / "config.json").read_bytes(), where="config.json")["provenance"]["steps"]
    except (OSError, EarthGPTError, KeyError, TypeError):
        return ""
    return "" if step == last else f" of step {typed.show(step)}"


def _summarize_checkpoint(path: Path) -> Summary:
    try:
        if not (path / METADATA).is_file():
            raise EarthGPTError(f"lacks {METADATA}")
        metadata = parse_json((path / METADATA).read_bytes(), where=METADATA)
        saved = saved_format(metadata)
        if saved == CHECKPOINT_FORMAT:
            check_metadata(metadata)
            _check_files(path, metadata)
        config = _check_run_config(metadata.get("config")) or _read_run_config(path.parents[1] / "config.json")
    except (EarthGPTError, OSError) as error:
        return Summary(title=f"{path}: DAMAGED checkpoint ({error}); it cannot be restored", intact=False)
    if saved != CHECKPOINT_FORMAT:
        expected = f"but this version restores format {CHECKPOINT_FORMAT} only"
        return Summary(title=f"{path}: checkpoint of format {typed.show(saved)}, {expected}", intact=False)
    total = f" of {config['optim']['steps']}" if config else ""
    title = f"{path}: checkpoint of step {path.name}{total}" + (f", {_recipe(config)}" if config else "")
    return Summary(title=title, facts=tuple(_facts(metadata, config)))


def _check_files(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise if a file is missing without which a checkpoint cannot be restored."""
    required: Iterable[str] = _REQUIRED_FILES
    if isinstance(path, BucketPath):
        required = (f"{metadata['state_folder']}/{array}/.zarray" for array in metadata["arrays"])
    names = {file.relative_to(path).as_posix() for file in path.rglob("*")}
    if missing := [name for name in required if name not in names]:
        raise EarthGPTError(f"lacks {', '.join(missing[:3])}")


def _facts(metadata: Mapping[str, Any], config: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the facts that `metadata` has; every key is optional."""
    facts = []
    if "saved" in metadata:
        versions = ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())
        facts.append(("saved", f"{metadata['saved']} by {versions}"))
    if "data_position" in metadata:
        position = f"step {metadata['data_position']}"
        if config:
            position += f", {metadata['data_position'] * config['data']['batch_size']:,} packed sequences"
        facts.append(("data position", position))
    for name, value in metadata.get("identity", {}).items():
        if name.endswith(": dataset"):
            facts.append(("dataset", f"{name.removesuffix(': dataset')}, fingerprint {value}"))
    if "arrays" in metadata:
        arrays = metadata["arrays"]
        trainable = {name: array for name, array in arrays.items() if name.startswith("trainable/")}
        count = sum(math.prod(shape) for _, shape in trainable.values())
        facts.append(("trainable", f"{len(trainable)} arrays, {count:,} parameters, {_megabytes(trainable.values())}"))
        facts.append(("state", f"optimizer included: {len(arrays)} arrays, {_megabytes(arrays.values())}"))
    frozen = metadata.get("frozen")
    if frozen:
        parent = frozen["parent"].get("recipe", "unknown")
        facts.append(("frozen", f"not saved: fingerprint {frozen['fingerprint']}, {frozen['dtype']}, from {parent}"))
    elif "frozen weights" in metadata.get("identity", {}):
        facts.append(("frozen", f"not saved: fingerprint {metadata['identity']['frozen weights']}"))
    if frozen and config:
        facts.append(("started from", config.get("init") or json.dumps(config.get("init_from"))))
    if "mesh" in metadata:
        axes = ", ".join(f"{axis} {size}" for axis, size in metadata["mesh"].items())
        facts.append(("mesh", f"{axes}: {metadata['devices']}; can be restored onto any other"))
    return facts


def _megabytes(arrays: Iterable[Sequence[Any]]) -> str:
    total = sum(math.prod(shape) * _ITEM_BYTES.get(dtype, 4) for dtype, shape in arrays)
    return f"{total / 1e6:,.2f} MB"


def _recipe(config: Mapping[str, Any]) -> str:
    return f"{config['recipe']}, stage {config['stage']}"


def _read_run_config(path: Path) -> dict[str, Any] | None:
    """Return the config of a run; None if the file is absent or belongs to a model directory."""
    try:
        return _check_run_config(parse_json(path.read_bytes(), where=str(path)))
    except (OSError, EarthGPTError):
        return None


def _check_run_config(values: Any) -> dict[str, Any] | None:
    """Return the config of a run if it has the fields that a summary shows, with their types."""
    try:
        config = typed.check(_RunConfig, values, where="config", further=True)
        for hint, group in ((_Optim, "optim"), (_Data, "data")):
            typed.check(hint, config[group], where=group, further=True)
    except EarthGPTError:
        return None
    return config
