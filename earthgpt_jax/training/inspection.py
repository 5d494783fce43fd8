"""What a work directory or a checkpoint is, from its JSON alone: no array is read, nothing is loaded.

Whether each array still is what was saved is found out when it is restored (`checkpoints.Checkpoints.restore`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError

_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of what Orbax has not finished
_NEEDED = ("extra/metadata", "state/_METADATA", "state/manifest.ocdbt")
_BYTES = {"float32": 4, "int32": 4, "uint32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What there is to say.

    Attributes:
        title: path, what it is, its state.
        facts: `(name, text)`.
        whole: whether nothing about it is unfinished or damaged.
    """

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    whole: bool = True

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.facts), default=0)
        return "\n".join([self.title, *(f"  {name:<{width}}  {text}" for name, text in self.facts)])


def inspect(path: Path) -> list[Summary] | None:
    """Of a run's work directory, its `checkpoints` folder or one checkpoint; None if it is none of them."""
    if _TEMPORARY in path.name and path.is_dir():
        return [_unfinished(path)]
    if path.name.isdigit() and ((path / "state").is_dir() or path.absolute().parent.name == "checkpoints"):
        return [_checkpoint(path)] if path.is_dir() else None
    if path.name == "checkpoints" and path.is_dir():
        return _checkpoints(path)
    config = _stage_config(path / "config.json")
    if config is None:
        return None
    return [_run(path, config), *(_checkpoints(path / "checkpoints") if (path / "checkpoints").is_dir() else [])]


def unfinished(folder: Path) -> list[Path]:
    """What Orbax began in `folder` and has not finished: a save that runs right now, or one that was killed."""
    return sorted(path for path in folder.glob(f"*{_TEMPORARY}*") if path.is_dir()) if folder.is_dir() else []


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, damaged ones included, in order."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def _checkpoints(folder: Path) -> list[Summary]:
    """The newest in full, the others in a line each; then what does not belong there."""
    found = [_checkpoint(folder / str(step)) for step in reversed(steps(folder))]
    if not found:
        found = [Summary(title=f"{folder}: no checkpoint is complete; the run starts from its beginning")]
    older = [dataclasses.replace(told, facts=()) if told.whole else told for told in found[1:]]
    strange = [
        Summary(title=f"{path}: not a checkpoint; no run reads it")
        for path in sorted(folder.iterdir())
        if not path.name.isdigit() and _TEMPORARY not in path.name
    ]
    return [found[0], *older, *map(_unfinished, unfinished(folder)), *strange]


def _unfinished(path: Path) -> Summary:
    return Summary(
        title=f"{path}: UNFINISHED checkpoint: being written, or its run was killed meanwhile. It is never restored; "
        "the next start removes it",
        whole=False,
    )


def _run(path: Path, config: Mapping[str, Any]) -> Summary:
    saved = steps(path / "checkpoints") if (path / "checkpoints").is_dir() else []
    last = config["optim"]["steps"]
    if (path / "model").is_dir():
        state = f"finished, {last} steps; {path / 'model'}"
    elif saved:
        state = f"{saved[-1]} of {last} steps"
    else:
        state = f"nothing saved yet of {last} steps"
    return Summary(title=f"{path}: run of {_recipe(config)}, {state}")


def _checkpoint(path: Path) -> Summary:
    try:
        missing = [name for name in _NEEDED if not (path / name).is_file()]
        if missing:
            raise EarthGPTError(f"lacks {', '.join(missing)}")
        said = json.loads((path / "extra" / "metadata").read_text())
        json.loads((path / "state" / "_METADATA").read_text())
        if not isinstance(said, dict):
            raise EarthGPTError("extra/metadata is not an object")
    except (EarthGPTError, ValueError, OSError) as error:
        return Summary(title=f"{path}: DAMAGED checkpoint ({error}); nothing can be restored from it", whole=False)
    config = said.get("config") or _stage_config(path.parents[1] / "config.json")
    of = f" of {config['optim']['steps']}" if config else ""
    title = f"{path}: checkpoint of step {path.name}{of}" + (f", {_recipe(config)}" if config else "")
    return Summary(title=title, facts=tuple(_facts(said, config)))


def _facts(said: Mapping[str, Any], config: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Older versions said less; whatever is there is told."""
    facts = []
    if "saved" in said:
        versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
        facts.append(("saved", f"{said['saved']} by {versions}"))
    if "data_position" in said:
        position = f"step {said['data_position']}"
        if config:
            position += f", {said['data_position'] * config['data']['batch_size']:,} rows"
        facts.append(("data position", position))
    for name, value in said.get("identity", {}).items():
        if name.endswith(": dataset"):
            facts.append(("dataset", f"{name.removesuffix(': dataset')}, fingerprint {value}"))
    if "arrays" in said:
        arrays = said["arrays"]
        trainable = {name: array for name, array in arrays.items() if name.startswith("trainable/")}
        numbers = sum(math.prod(shape) for _, shape in trainable.values())
        facts.append(("trained", f"{len(trainable)} arrays, {numbers:,} numbers, {_megabytes(trainable.values())}"))
        facts.append(("state", f"with the optimizer's: {len(arrays)} arrays, {_megabytes(arrays.values())}"))
    frozen = said.get("frozen")
    if frozen:
        parent = frozen["parent"].get("recipe", "unknown")
        facts.append(("frozen", f"not in here: fingerprint {frozen['fingerprint']}, {frozen['dtype']}, of {parent}"))
    elif "frozen weights" in said.get("identity", {}):
        facts.append(("frozen", f"not in here: fingerprint {said['identity']['frozen weights']}"))
    if frozen and config:
        facts.append(("started from", config["init"] or json.dumps(config["init_from"])))
    if "mesh" in said:
        axes = ", ".join(f"{axis} {size}" for axis, size in said["mesh"].items())
        facts.append(("mesh", f"{axes}: {said['devices']}; any other restores it"))
    return facts


def _megabytes(arrays: Sequence | Any) -> str:
    total = sum(math.prod(shape) * _BYTES.get(dtype, 4) for dtype, shape in arrays)
    return f"{total / 1e6:,.2f} MB"


def _recipe(config: Mapping[str, Any]) -> str:
    return f"{config['recipe']}, stage {config['stage']}"


def _stage_config(path: Path) -> dict[str, Any] | None:
    """A run's config; None where there is none, or a model directory's."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(values, dict) and {"recipe", "stage", "optim"} <= values.keys()
    return values if known else None
