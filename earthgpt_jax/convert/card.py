"""Write the model card of an export from what the training run recorded, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AdapterKind
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.models.model_dir import ModelDir

TEMPLATE = Path(__file__).with_name("card.md.j2")
_BASELINES = ("constant", "random", "blind")  # as `earthgpt eval` names them in scores.json
_UNTITLED = {"intervals"}  # entries of scores that are no scores
_SYNTHETIC = "synthetic"


def model_card(model: ModelDir, *, adapter: str, scores: Mapping[str, Any] | None) -> str:
    """Return the model card: Markdown with the Hub's metadata, architecture, training runs, data licences and scores.

    Args:
        adapter: how the adapters were exported: "merge" or "separate".
        scores: nested scores, as `earthgpt eval` writes them; each number becomes a line of a table, next to those of
            the baselines.
    """
    runs, names = list(_runs(model.provenance)), _datasets(model)
    known_cards = load_cards()
    has_adapter = model.model.adapter.kind is not AdapterKind.NONE
    rows = list(_rows(scores or {}))
    sources = {name: known_cards.get(name) for name in names}
    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        # Without any data but our own synthetic scenes, nothing restricts the weights.
        licence="apache-2.0" if set(names) <= {_SYNTHETIC} else "other",
        model=model.model,
        decimals=model.decimals,
        adapters={"merge": ", merged into the weights", "separate": ", in adapter/"}[adapter] if has_adapter else "",
        runs=runs,
        sources=sources,
        sensors=sorted({card.sensor.value for card in sources.values() if card} or {"optical", "sar", "infrared"}),
        rows=rows,
        baselines=[name for name in _BASELINES if any(name in row.baselines for row in rows)],
    )


def check_push_ready(model: ModelDir, *, scores: Mapping[str, Any] | None) -> None:
    """Raise unless a model card can say where the weights come from and how good they are.

    Raises:
        EarthGPTError: there are no scores, or scores without baselines; or a dataset has no card with a licence. The
            message lists all problems.
    """
    cards, rows = load_cards(), list(_rows(scores or {}))
    problems = []
    if not rows:
        problems.append("scores: expected --scores FILE, the scores.json of `earthgpt eval`, got none")
    elif missing := [name for name in _BASELINES if not any(name in row.baselines for row in rows)]:
        problems.append(f"scores: expected the baselines {', '.join(_BASELINES)}, found no {', '.join(missing)}")
    names = _datasets(model)
    if not names:
        problems.append("training data: expected runs that name their data, found none; train with `earthgpt train`")
    unknown = [name for name in names if name != _SYNTHETIC and (name not in cards or not cards[name].licence)]
    problems += [f"training data: expected a card with a licence for {name}; write one" for name in unknown]
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise EarthGPTError(f"{model.path}: not ready to be published: {len(problems)} problems{listed}")


def _datasets(model: ModelDir) -> list[str]:
    """Return the names of the datasets that all runs were trained on."""
    return sorted({name for run in _runs(model.provenance) for name in str(run.get("source", "")).split(", ")} - {""})


def _runs(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the runs that led to a model, the first one first and the model's own run last."""
    if isinstance(provenance.get("parent"), Mapping):
        yield from _runs(provenance["parent"])
    yield provenance


@dataclasses.dataclass(frozen=True)
class _Row:
    """One score: its place, such as "vqa, all, accuracy", its value, and the values of the baselines, as text."""

    name: str
    value: str
    baselines: Mapping[str, str]


def _rows(scores: Mapping[str, Any], path: str = "") -> Iterator[_Row]:
    """Yield a row for every number in nested scores; counts have no decimals."""
    others = {name: scores[name] for name in _BASELINES if isinstance(scores.get(name), Mapping)}
    for name, value in scores.items():
        if name in others or name in _UNTITLED:
            continue
        if isinstance(value, Mapping):
            yield from _rows(value, f"{path}{name}, ")
        elif _is_number(value):
            baselines = {other: _text(cell[name]) for other, cell in others.items() if _is_number(cell.get(name))}
            yield _Row(f"{path}{name}", _text(value), baselines)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
