"""Write the model card of an export from what the training run recorded, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from earthgpt_jax.config import AdapterKind
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.models.model_dir import ModelDir

TEMPLATE = Path(__file__).with_name("card.md.j2")


def model_card(model: ModelDir, *, adapter: str, scores: Mapping[str, Any] | None) -> str:
    """Return the model card: Markdown with the Hub's metadata, architecture, training runs, data licences and scores.

    Args:
        adapter: how the adapters were exported: "merge" or "separate".
        scores: nested scores, as `earthgpt eval` writes them; each number becomes a line of a table.
    """
    runs, known_cards = list(_runs(model.provenance)), load_cards()
    names = sorted({name for run in runs for name in str(run.get("source", "")).split(", ")} - {""})
    has_adapter = model.model.adapter.kind is not AdapterKind.NONE
    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        # Without any data but our own synthetic scenes, nothing restricts the weights.
        licence="apache-2.0" if set(names) <= {"synthetic"} else "other",
        model=model.model,
        decimals=model.decimals,
        adapters={"merge": ", merged into the weights", "separate": ", in adapter/"}[adapter] if has_adapter else "",
        runs=runs,
        sources={name: known_cards.get(name) for name in names},
        scores=list(_numbers(scores or {})),
    )


def _runs(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the runs that led to a model, the first one first and the model's own run last."""
    if isinstance(provenance.get("parent"), Mapping):
        yield from _runs(provenance["parent"])
    yield provenance


def _numbers(scores: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield `("group, metric", value as text)` for every number in nested scores; counts have no decimals."""
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{name}, ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{path}{name}", str(value) if isinstance(value, int) else f"{value:.3f}"
