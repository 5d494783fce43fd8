"""Mixtures: which datasets of a folder are trained on, and how often an epoch goes through each; YAML files.

Raffel et al. (2020, section 3.5.2) compare the rules: in proportion to size, by temperature, equal.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Collection, Mapping
from pathlib import Path

import yaml

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.config import build
from earthgpt_jax.records import Sensor


class Rule(enum.StrEnum):
    """`proportional`: all once an epoch; `temperature`: by size, flattened; `explicit`: as it is written down."""

    PROPORTIONAL = "proportional"
    TEMPERATURE = "temperature"
    EXPLICIT = "explicit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """A rule for the weights of datasets: how often an epoch goes through each.

    Attributes:
        temperature: a dataset with n questions an epoch gets a share of them all in proportion to n^(1/temperature):
            1 is proportional, and the higher, the more alike are all. Only of the rule `temperature`.
        weights: dataset -> weight, 0 to leave it out. Only of the rule `explicit`, which trains on no other.
        sensors: sensor -> what weights of its records are multiplied with; 1 where it is not named.
        sources: the datasets that are trained on, all of which must be there; empty: whatever is there. Not of the
            rule `explicit`.
    """

    rule: Rule
    temperature: float = 0.0
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    sensors: dict[str, float] = dataclasses.field(default_factory=dict)
    sources: tuple[str, ...] = ()

    def check(self) -> list[str]:
        errors = []
        if self.rule is Rule.TEMPERATURE and not 0 < self.temperature < math.inf:
            errors.append(
                f"temperature: expected a positive number, as the rule is temperature, got {self.temperature}"
            )
        if self.rule is not Rule.TEMPERATURE and self.temperature:
            errors.append(f"temperature: the rule {self.rule} has none, got {self.temperature}; leave it out")
        if self.rule is Rule.EXPLICIT and not any(self.weights.values()):
            errors.append("weights: expected a positive weight, as the rule is explicit, got none")
        if self.rule is not Rule.EXPLICIT and self.weights:
            errors.append(f"weights: the rule {self.rule} has none; make it explicit, or leave them out")
        if self.rule is Rule.EXPLICIT and self.sources:
            errors.append("sources: the rule explicit names them by their weights; leave it out")
        for field, weights in (("weights", self.weights), ("sensors", self.sensors)):
            errors += [
                f"{field}.{name}: expected a number from 0 on, got {weight}"
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
        """Is this dataset trained on, if it is there?"""
        if self.rule is Rule.EXPLICIT:
            return self.weights.get(name, 0) > 0
        return not self.sources or name in self.sources

    def missing(self, names: Collection[str]) -> list[str]:
        """The datasets that it needs beyond these, in its order."""
        return [name for name in (*self.sources, *self.weights) if self.uses(name) and name not in names]

    def weigh(self, asked: Mapping[str, float]) -> dict[str, float]:
        """Dataset -> weight, sensors aside.

        Args:
            asked: dataset -> questions that one pass through it asks, at the weights of their kinds.
        """
        match self.rule:
            case Rule.PROPORTIONAL:
                return dict.fromkeys(asked, 1.0)
            case Rule.EXPLICIT:
                return {name: self.weights[name] for name in asked}
            case Rule.TEMPERATURE:
                flat = {name: count ** (1 / self.temperature) for name, count in asked.items() if count}
                scale = sum(asked.values()) / max(sum(flat.values()), 1e-9)
                weights = {name: scale * share / asked[name] for name, share in flat.items()}
                # The last bits of a power differ from machine to machine, and weights are part of a plan's identity.
                return {name: float(f"{weights.get(name, 1.0):.6g}") for name in asked}

    def of(self, sensor: Sensor) -> float:
        """What the weights of a sensor's records are multiplied with."""
        return self.sensors.get(sensor.value, 1.0)


def load_mixture(name: str) -> Mixture:
    """The mixture of a name in `data/mixtures`, or of a file; of "", all that is there, each once an epoch.

    Raises:
        EarthGPTError: no such file, or what it says is not a mixture; everything found is in the one message.
    """
    if not name:
        return Mixture(rule=Rule.PROPORTIONAL)
    path = _find(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EarthGPTError(f"mixture {path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise EarthGPTError(f"mixture {path}: cannot be read as YAML: {error}") from error
    return build(Mixture, values, where=f"mixture {path}")


def _find(name: str) -> Path:
    for candidate in (Path(name), data_path("mixtures", f"{name}.yaml")):
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in data_path("mixtures").glob("*.yaml"))
    raise EarthGPTError(
        f"data.mixture: no file {name!r}, nor a mixture of that name{did_you_mean(Path(name).stem, known)} "
        f"Mixtures: {', '.join(known)}."
    )
