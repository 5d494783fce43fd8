"""Mixtures: which datasets of a folder to train on, and with which weights, as YAML files.

A weight is the number of epochs of the dataset per epoch of training. Raffel et al. (2020, section 3.5.2) compare
weights in proportion to size, by temperature, and equal ones.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.parsing import parse_yaml
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.config import build
from earthgpt_jax.records import Sensor


class Rule(enum.StrEnum):
    """How weights are set.

    `proportional`: every dataset once per epoch; `temperature`: small datasets more often (see
    `Mixture.temperature`); `explicit`: as given.
    """

    PROPORTIONAL = "proportional"
    TEMPERATURE = "temperature"
    EXPLICIT = "explicit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """A rule for the weights of datasets.

    Attributes:
        temperature: Sampling temperature of the rule `temperature`. A dataset with n questions per epoch gets a share
            of all questions in proportion to n^(1/temperature): 1 is proportional, and higher values make the shares
            more equal.
        weights: Dataset -> weight for the rule `explicit`; 0 or no weight leaves the dataset out.
        sensors: Sensor -> factor for the weights of its records (default: 1).
        sources: Datasets to train on, all of which must exist; empty for every dataset in the folder. Not for the
            rule `explicit`.
    """

    rule: Rule
    temperature: float = 0.0
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    sensors: dict[str, float] = dataclasses.field(default_factory=dict)
    sources: tuple[str, ...] = ()

    def check(self) -> list[str]:
        """Return what is wrong with the values, one message each."""
        errors = []
        if self.rule is Rule.TEMPERATURE and not 0 < self.temperature < math.inf:
            errors.append(f"temperature: expected a positive number for the rule temperature, got {self.temperature}")
        if self.rule is not Rule.TEMPERATURE and self.temperature:
            errors.append(f"temperature: the rule {self.rule} has none, got {self.temperature}; remove it")
        if self.rule is Rule.EXPLICIT and not any(self.weights.values()):
            errors.append("weights: expected a positive weight for the rule explicit, got none")
        if self.rule is not Rule.EXPLICIT and self.weights:
            errors.append(f"weights: the rule {self.rule} has none; use the rule explicit, or remove them")
        if self.rule is Rule.EXPLICIT and self.sources:
            errors.append("sources: the rule explicit lists its datasets in weights; remove sources")
        for field, weights in (("weights", self.weights), ("sensors", self.sensors)):
            errors += [
                f"{field}.{name}: expected a finite number of at least 0, got {weight}"
                for name, weight in weights.items()
                if not 0 <= weight < math.inf
            ]
        known = [sensor.value for sensor in Sensor]
        errors += [
            f"sensors.{name}: unknown sensor{did_you_mean(name, known)} Sensors: {', '.join(known)}"
            for name in self.sensors
            if name not in known
        ]
        twice = sorted({name for name in self.sources if self.sources.count(name) > 1})
        return errors + [f"sources: {name} is named twice" for name in twice]

    def uses(self, name: str) -> bool:
        """Return whether the mixture trains on a dataset of this name, if it exists."""
        if self.rule is Rule.EXPLICIT:
            return self.weights.get(name, 0) > 0
        return not self.sources or name in self.sources

    def missing(self, names: Collection[str]) -> list[str]:
        """Return the datasets of the mixture that are not among `names`."""
        return [name for name in (*self.sources, *self.weights) if self.uses(name) and name not in names]

    def weigh(self, questions: Mapping[str, float]) -> dict[str, float]:
        """Return the weight of each dataset, without the factors of its sensors.

        Args:
            questions: Dataset -> questions that one epoch of it asks, by the weights of their tasks.
        """
        match self.rule:
            case Rule.PROPORTIONAL:
                return dict.fromkeys(questions, 1.0)
            case Rule.EXPLICIT:
                return {name: self.weights[name] for name in questions}
            case Rule.TEMPERATURE:
                shares = {name: count ** (1 / self.temperature) for name, count in questions.items() if count}
                scale = sum(questions.values()) / max(sum(shares.values()), 1e-9)
                weights = {name: scale * share / questions[name] for name, share in shares.items()}
                # Rounded, because the last bits of a power differ between machines and weights are part of the
                # schedule's identity.
                return {name: float(f"{weights.get(name, 1.0):.6g}") for name in questions}

    def sensor_weight(self, sensor: Sensor) -> float:
        """Return the factor for the weights of a sensor's records."""
        return self.sensors.get(sensor.value, 1.0)


def load_mixture(name: str) -> Mixture:
    """Load a mixture by its name in `data/mixtures` or from a file; "" is every dataset once per epoch.

    Raises:
        EarthGPTError: The file does not exist or is not a valid mixture; the message lists all problems.
    """
    if not name:
        return Mixture(rule=Rule.PROPORTIONAL)
    path = _find(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EarthGPTError(f"mixture {path}: cannot be read: {error.strerror}") from error
    return build(Mixture, parse_yaml(content, where=f"mixture {path}"), where=f"mixture {path}")


def _find(name: str) -> Path:
    for candidate in (files.path(name), data_path("mixtures", f"{name}.yaml")):
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in data_path("mixtures").glob("*.yaml"))
    raise EarthGPTError(
        f"data.mixture: expected a mixture's name or file, got {name!r}{did_you_mean(Path(name).stem, known)} "
        f"Mixtures: {', '.join(known)}."
    )
