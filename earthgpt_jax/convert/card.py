"""The model card of an export: written from the run, nothing that the run does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from earthgpt_jax.config import AdapterKind
from earthgpt_jax.datasets.cards import cards
from earthgpt_jax.models.model_dir import ModelDir

TEMPLATE = Path(__file__).with_name("card.md.j2")


def model_card(model: ModelDir, *, adapter: str, scores: Mapping[str, Any] | None) -> str:
    """Markdown with the Hub's metadata: architecture, lineage, data with licences, scores if given.

    Args:
        adapter: "fold" or "separate", what the export did with the adapters.
        scores: nested figures; every number in it becomes a row.
    """
    runs, known = list(_lineage(model.about)), cards()
    names = sorted({name for run in runs for name in str(run.get("source", "")).split(", ")} - {""})
    has_adapter = model.model.adapter.kind is not AdapterKind.NONE
    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        model=model.model,
        decimals=model.decimals,
        adapters={"fold": ", folded into the weights", "separate": ", in adapter/"}[adapter] if has_adapter else "",
        runs=runs,
        sources={name: known.get(name) for name in names},
        scores=list(_numbers(scores or {})),
    )


def _lineage(about: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """This run and its parents, the first one first."""
    if isinstance(about.get("parent"), Mapping):
        yield from _lineage(about["parent"])
    yield about


def _numbers(scores: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{name}, ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{path}{name}", float(value)
