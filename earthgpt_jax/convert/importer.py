"""Foreign checkpoints -> a model of ours: each part from its own source, tensor by tensor."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AdapterConfig, ModelConfig
from earthgpt_jax.convert.layouts import WHOLE, Source, open_source
from earthgpt_jax.convert.tables import Entry
from earthgpt_jax.convert.tensor_io import Folder, Reader, SafetensorsWriter, Shape
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, model_dir

# Part of a model, as a user names it -> our path prefixes. What has no source of its own starts fresh
# if it is small and new in every EarthGPT: perception, projector, image marks and adapters.
PARTS = {
    "vit": ("vit/",),
    "convnext": ("convnext/",),
    "llm": ("llm/",),
    "projector": ("perception/", "projector/", "image_tokens/"),
}
_FRESH = ("perception/", "projector/", "image_tokens/")
Paths = str | Path | Sequence[str | Path]


@dataclasses.dataclass(frozen=True)
class Step:
    """One tensor's way: where it is read, what becomes of it."""

    reader: Reader
    entry: Entry

    def read(self) -> np.ndarray:
        entry = self.entry
        rows = self.reader.read(entry.key, entry.start, entry.rows)
        return entry.transform.ours(rows)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A whole conversion before any tensor is read.

    Attributes:
        model: the config, with the adapters that the sources hold.
        shapes, dtypes: of every leaf.
        steps: in the order of the sources' files.
        fresh: leaves that no source has.
        about: part -> where it comes from.
    """

    model: ModelConfig
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, np.dtype]
    steps: Sequence[Step]
    fresh: Sequence[str]
    about: Mapping[str, str]


def plan(parts: Mapping[str, Paths], model: ModelConfig, *, dtype: np.dtype | None = None) -> Plan:
    """What to read from where.

    Args:
        parts: "vit", "convnext", "llm", "projector" -> files or folders; or "model" -> a whole EarthGPT.
        dtype: of all leaves; None keeps the sources'.

    Raises:
        EarthGPTError: every part that is missing, unknown, of another kind or another shape, together.
    """
    problems: list[str] = []
    opened: dict[str, Source] = {}
    for part, paths in parts.items():
        try:
            if part not in (*PARTS, "model"):
                raise EarthGPTError(f"unknown part {part!r}; parts: {', '.join((*PARTS, 'model'))}")
            opened[part] = open_source(paths)
            _check_kind(part, opened[part])
        except EarthGPTError as error:
            problems.append(str(error))
    language = opened.get("llm") or opened.get("model")
    bare = dataclasses.replace(model, adapter=AdapterConfig())
    if language is not None:
        model = language.adapted(model)
    _, expected = earthgpt.abstract(model)
    shapes: dict[str, Shape] = {path: tuple(leaf.shape) for path, leaf in expected.items()}
    steps: list[Step] = []
    filled: set[str] = set()
    for part, source in opened.items():
        prefixes = WHOLE if part == "model" else PARTS[part]
        own_adapters = source is language and source.holds(model.adapter)
        mine = {
            path: shape
            for path, shape in shapes.items()
            if path.startswith(prefixes) and (own_adapters or "/adapter/" not in path)
        }
        plain = model if own_adapters else bare
        try:
            table = source.layout.table(plain, source.reader)
            if part == "projector":
                table = dataclasses.replace(
                    table, rows=tuple(row for row in table.rows if row.path.startswith(prefixes)), ignored=(".*",)
                )
            steps += [
                Step(source.reader, entry) for entry in table.entries(mine, source.reader.shapes, where=source.path)
            ]
        except EarthGPTError as error:
            problems.append(str(error))
        filled |= mine.keys()
    fresh = [path for path in shapes if path not in filled]
    orphans = (path for path in fresh if "/adapter/" not in path and not path.startswith(_FRESH))
    if lost := sorted({path.split("/")[0] for path in orphans}):
        problems.append(
            f"no source for {', '.join(lost)}; expected one for each of vit, convnext and llm, or a whole model"
        )
    if problems:
        head = (
            problems[0]
            if len(problems) == 1
            else f"{len(problems)} problems\n" + "\n".join(f"  - {p}" for p in problems)
        )
        raise EarthGPTError(head)
    found: dict[str, np.dtype] = {}
    for step in steps:
        theirs = step.reader.dtypes[step.entry.key]
        found[step.entry.path] = np.result_type(found.get(step.entry.path, theirs), theirs)
    dtypes = {path: np.dtype(dtype or found.get(path, np.dtype("float32"))) for path in shapes}
    return Plan(model, shapes, dtypes, steps, fresh, {part: source.path for part, source in opened.items()})


def _check_kind(part: str, source: Source) -> None:
    prefixes = WHOLE if part == "model" else PARTS[part]
    whole = source.layout.parts == WHOLE
    if not (whole if part in ("model", "projector") else source.layout.parts == prefixes):
        raise EarthGPTError(f"{source.path}: expected the weights of {part}, got {source.layout.name}")


def leaves(chosen: Plan, *, seed: int, progress: bool = True) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """`(path, layer or None, array)` of every leaf, fresh ones first; one tensor in memory at a time."""
    if chosen.fresh:
        names = list(chosen.fresh)

        def start() -> list[jax.Array]:
            # Under jit the leaves that are not returned are never made, whatever their size.
            _, params = earthgpt.init(chosen.model, seed=seed)
            return [params[name] for name in names]

        for name, value in zip(names, jax.jit(start)(), strict=True):
            yield name, None, np.asarray(value)
    for step in tqdm(chosen.steps, desc="convert", unit="tensor", disable=not progress):
        try:
            yield step.entry.path, step.entry.layer, step.read()
        except (RuntimeError, OSError) as error:
            raise EarthGPTError(f"{step.entry.key}: cannot be read ({error}); take its file anew") from error


def import_model(
    parts: Mapping[str, Paths], model: ModelConfig, *, out: Path, tokenizer: Path, decimals: int, chat_template: str,
    dtype: np.dtype | None = None, seed: int = 0,
) -> Path:  # fmt: skip
    """Writes a model directory; nothing of it is there under its name before it is complete."""
    chosen = plan(parts, model, dtype=dtype)
    check_vocabulary(tokenizer, model)
    with Folder(out) as folder:
        writer = SafetensorsWriter(
            folder, {path: (chosen.shapes[path], chosen.dtypes[path]) for path in sorted(chosen.shapes)}
        )
        for path, layer, array in leaves(chosen, seed=seed):
            writer.write(path, array if layer is None else array[None], layer or 0)
        writer.close()
        model_dir.write_description(
            folder, model=chosen.model, decimals=decimals, chat_template=chat_template, tokenizer=tokenizer,
            about={"recipe": "earthgpt convert import", "stage": "base", "steps": 0, "parts": dict(chosen.about)},
        )  # fmt: skip
    return out


def initial_arrays(
    parts: Mapping[str, Paths], model: ModelConfig, *, seed: int, place: Callable[[str, np.ndarray], jax.Array]
) -> dict[str, jax.Array]:
    """The leaves as arrays of a device or mesh: `place(path, host array)` is called for one leaf at a time."""
    chosen = plan(parts, model)
    if chosen.model != model:
        raise EarthGPTError(
            f"{', '.join(chosen.about.values())}: holds adapters ({chosen.model.adapter.kind.value}), the config "
            f"expects {model.adapter.kind.value}; import it into a model directory, or set model.adapter alike"
        )
    # Leaf by leaf, not file by file: only one stacked leaf is on the host at a time.
    by_path = sorted(chosen.steps, key=lambda step: (step.entry.path, step.entry.layer or 0))
    parts_of = itertools.groupby(
        leaves(dataclasses.replace(chosen, steps=by_path), seed=seed), key=lambda leaf: leaf[0]
    )
    arrays = {}
    for path, pieces in parts_of:
        leaf = np.empty(chosen.shapes[path], chosen.dtypes[path])
        for _, layer, array in pieces:
            leaf[... if layer is None else layer] = array
        arrays[path] = place(path, leaf)
    return dict(sorted(arrays.items()))


def find_tokenizer(parts: Mapping[str, Paths]) -> Path:
    """The tokenizer.model beside the language model."""
    places = [parts[part] for part in ("llm", "model") if part in parts]
    paths = [Path(path) for place in places for path in ([place] if isinstance(place, (str, Path)) else place)]
    folders = [path if path.is_dir() else path.parent for path in paths]
    for folder in folders:
        if (folder / "tokenizer.model").is_file():
            return folder / "tokenizer.model"
    raise EarthGPTError(
        f"expected a tokenizer.model in {', '.join(map(str, folders)) or 'the folder of the language model'}; "
        "copy the one that belongs to the language model there"
    )


def check_vocabulary(tokenizer: Path, model: ModelConfig) -> None:
    """Raises if the tokenizer has other pieces than the embedding has rows."""
    size = Tokenizer(tokenizer).vocab_size
    if size != model.llm.vocab_size:
        raise EarthGPTError(
            f"{tokenizer}: expected a tokenizer of {model.llm.vocab_size} pieces, as model.llm.vocab_size says, "
            f"got {size}; take the tokenizer.model that belongs to the language model"
        )
