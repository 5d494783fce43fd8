"""Third-party scorers: the published scoring rules of other projects, to show how much of a result is due to the rule.

Each project has a module of its name; `rule` describes what they have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party import earthdial, falcon, geochat, lhrs, rscovlm, vhm, vrsbench
from earthgpt_jax.evaluation.third_party.rule import Figures, Rule

SCORERS: Mapping[str, Mapping[str, Rule]] = {
    "geochat": geochat.RULES,
    "vhm": vhm.RULES,
    "lhrs": lhrs.RULES,
    "vrsbench": vrsbench.RULES,
    "earthdial": earthdial.RULES,
    "falcon": falcon.RULES,
    "rscovlm": rscovlm.RULES,
}


def rules_of(project: str) -> Mapping[str, Rule]:
    """Return the rules of a project by task.

    Raises:
        EarthGPTError: no rules of this project are known.
    """
    if project not in SCORERS:
        raise EarthGPTError(
            f"no third-party scorer {project!r}{did_you_mean(project, SCORERS)} Scorers: {', '.join(SCORERS)}"
        )
    return SCORERS[project]


def figures(project: str, predictions: Sequence[Prediction]) -> dict[str, Figures]:
    """Return task -> every figure of the project's table, for the tasks that it has a rule for."""
    return {
        str(task): rule.compute(rows)
        for task, rule in rules_of(project).items()
        if (rows := [p for p in predictions if p.task == task])
    }


def apply_rules(project: str, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return task -> the headline figure of the project, for the tasks that it has a rule for and that have one."""
    return {task: next(iter(values.values())) for task, values in figures(project, predictions).items() if values}
