"""Mixtures: which datasets are trained on and how often, by hand and in the rows of a plan."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax import config as config_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.resources import assets_path, data_path
from earthgpt_jax.config import Config
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.cards import Role, load_cards
from earthgpt_jax.input.packing.mixture import Mixture, Rule, load_mixture
from earthgpt_jax.input.packing.training_data import TrainingData, load_training_data
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import Record, Sensor, Task
from tests.support.native_datasets import png

NAMES = ("mixed", "sea", "town")


def _record(name: str, number: int, sensor: Sensor) -> Record:
    return Record(
        id=f"{name}/train/{number}",
        image=png(sum(name.encode()) + number),
        height=8,
        width=8,
        sensor=sensor,
        source=name,
        split="train",
        tasks=(Task.CAPTION,),
        references=(f"ships number {number} .",),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 captions of two sensors, 2 of SAR and 18 optical ones, in a dataset each."""
    folder = tmp_path_factory.mktemp("datasets")
    sensors = {
        "mixed": [Sensor.OPTICAL] * 5 + [Sensor.SAR] * 3,
        "sea": [Sensor.SAR] * 2,
        "town": [Sensor.OPTICAL] * 18,
    }
    for name, own in sensors.items():
        records = [_record(name, number, sensor) for number, sensor in enumerate(own)]
        write_dataset({"train": records}, out=folder / name, name=name)
    return folder


def _config(mixture: object = "", *overrides: str) -> Config:
    fields = [f"data.mixture={str(mixture)!r}", "data.task_weights={'caption': 1.0}", *overrides]
    return config_lib.load("tiny:instruct", [f"--config.{field}" for field in fields])


def _planned(folder: Path, mixture: object = "", *overrides: str) -> TrainingData:
    tokenizer = Tokenizer(assets_path("tiny", "tokenizer.model"))
    config = _config(mixture, f"data.source={str(folder)!r}", *overrides)
    return load_training_data(config, tokenizer=tokenizer, workers=1)


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _weights(found: TrainingData) -> dict[str, float]:
    return {source.name: source.weight for source in found.schedule.sources}


def test_the_mixtures_that_travel_along():
    trained = {card.name for card in load_cards().values() if card.role is Role.TRAINED}
    files = {path.stem: load_mixture(path.stem) for path in data_path("mixtures").glob("*.yaml")}
    assert set(files) == {"mmrs", "mmrs_balanced", "mmrs_released"}
    assert len(files["mmrs"].sources) == 34 and set(files["mmrs"].sources) == trained
    assert set(files["mmrs_released"].sources) == {name for name in load_cards() if name.startswith("mmrs1m_")}
    assert files["mmrs_balanced"].of(Sensor.SAR) > 1 == files["mmrs_balanced"].of(Sensor.OPTICAL)


def test_rules_by_hand():
    asked = {"small": 100.0, "large": 900.0, "none": 0.0}
    assert Mixture(rule=Rule.PROPORTIONAL).weigh(asked) == dict.fromkeys(asked, 1.0)
    flat = Mixture(rule=Rule.TEMPERATURE, temperature=2.0).weigh(asked)  # roots 10 and 30 share 1,000 questions
    assert flat == {"small": 2.5, "large": pytest.approx(0.833333), "none": 1.0}
    explicit = Mixture(rule=Rule.EXPLICIT, weights={"small": 3.0, "large": 0.0})
    assert explicit.weigh({"small": 100.0}) == {"small": 3.0}
    assert [explicit.uses(name) for name in asked] == [True, False, False]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=9), st.floats(0.5, 20))
def test_temperature_asks_as_much_as_is_there_and_evens_out(sizes, temperature):
    asked = {str(place): float(size) for place, size in enumerate(sizes)}
    weights = Mixture(rule=Rule.TEMPERATURE, temperature=temperature).weigh(asked)
    drawn = {name: weights[name] * size for name, size in asked.items()}
    assert sum(drawn.values()) == pytest.approx(sum(sizes), rel=1e-4)
    for name, size in asked.items():
        expected = (size / asked["0"]) ** (1 / temperature)
        assert drawn[name] / drawn["0"] == pytest.approx(expected, rel=1e-4)


def test_without_a_mixture_everything_is_read_once(folder):
    found = _planned(folder)
    assert _weights(found) == dict.fromkeys(NAMES, 1.0)
    assert [source.name for source in found.sources] == list(NAMES)
    read = collections.Counter(
        found.sources[placed.source][placed.record].id
        for row in range(found.schedule.rows)
        for placed in found.schedule[row]
    )
    assert len(read) == 28 and set(read.values()) == {1}


def test_images_of_a_row_are_the_recipes(folder):
    plan = _planned(folder, "", "data.max_images=0").schedule
    assert plan.max_images == plan.room.seq_len // (plan.room.shared + 1)
    assert _planned(folder, "", "data.max_images=3").schedule.max_images == 3
    with pytest.raises(EarthGPTError, match="max_images: expected a number of images"):
        _config("", "data.max_images=-1")


def test_sensors_of_a_dataset_are_split_where_they_are_weighed(folder, tmp_path):
    both = _planned(folder, _file(tmp_path / "m.yaml", "rule: proportional\nsensors: {sar: 2.0, infrared: 7}\n"))
    assert _weights(both) == {"mixed/optical": 1.0, "mixed/sar": 2.0, "sea": 2.0, "town": 1.0}
    assert both.sources[0] is both.sources[1]
    for source, read in zip(both.schedule.sources, both.sources, strict=True):
        of = {read[number].sensor.value for number in source.records}
        assert len(of) == 1 and (source.name.partition("/")[2] or of.copy().pop()) in of
    alike = _planned(folder, _file(tmp_path / "n.yaml", "rule: proportional\nsensors: {sar: 3, optical: 3.0}\n"))
    assert _weights(alike) == dict.fromkeys(NAMES, 3.0)
    one = _planned(folder, _file(tmp_path / "o.yaml", "rule: proportional\nsensors: {optical: 0}\n"))
    assert _weights(one) == {"mixed/sar": 1.0, "sea": 1.0}


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]), st.sampled_from([0.1, 0.5, 0.75, 2.0]), st.sampled_from([0.5, 1.0]))
def test_passes_are_what_the_rows_of_a_cycle_hold(folder, sea, sar, caption):
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(f"rule: explicit\nweights: {{mixed: 1.0, sea: {sea}}}\nsensors: {{sar: {sar}}}\n")
    found = _planned(folder, path, f"data.task_weights={{'caption': {caption}}}")
    plan = found.schedule
    asked: collections.Counter[int] = collections.Counter()
    for row in range(plan.rows, 2 * plan.rows):
        for placed in plan[row]:
            asked[placed.source] += len(placed.questions)
    passes = plan.epochs_per_source(plan.rows)
    for place, source in enumerate(plan.sources):
        times = plan.cycle.times[source.name, "caption"]
        assert asked[place] == times * len(source.records)
        assert passes[source.name] == pytest.approx(asked[place] / (caption * len(source.records)))
        if (source.name, "caption") not in plan.cycle.lost:
            assert passes[source.name] == pytest.approx(source.weight * plan.cycle.epochs)


def test_temperature_in_a_plan(folder, tmp_path):
    path = _file(tmp_path / "m.yaml", "rule: temperature\ntemperature: 2\nsources: [sea, town]\n")
    assert _weights(_planned(folder, path)) == {"sea": 2.5, "town": pytest.approx(15 / 18, rel=1e-5)}  # roots 1 : 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rule: temprature\n", ["did you mean 'temperature'"]),
        ("rules: explicit\n", ["rules: unknown field; did you mean 'rule'", "rule: missing"]),
        ("rule: temperature\n", ["temperature: expected a positive number"]),
        ("rule: proportional\ntemperature: 2\n", ["temperature: the rule proportional has none"]),
        (
            "rule: explicit\nsensors: {saar: 2}\nweights: {a: -1.0, b: .inf}\nsources: [b, b]\n",
            [
                "5 problems",
                "did you mean 'sar'",
                "weights.a: expected a number from 0 on",
                "sources: the rule explicit",
            ],
        ),
        ("rule: explicit\n", ["weights: expected a positive weight"]),
        ("rule: proportional\nweights: {a: 1}\n", ["weights: the rule proportional has none"]),
        ("- a\n", ["expected a group of fields"]),
        ("a: [\n", ["cannot be read as YAML"]),
        ("rule: explicit\nweights: {a: much}\n", ["weights.a: expected float, got 'much'"]),
    ],
)
def test_a_file_that_is_wrong(tmp_path, text, said):
    path = _file(tmp_path / "m.yaml", text)
    with pytest.raises(EarthGPTError) as error:
        load_mixture(str(path))
    assert all(part in str(error.value) for part in [str(path), *said]), error.value


def test_a_name_that_is_wrong():
    with pytest.raises(EarthGPTError, match="did you mean 'mmrs_balanced'"):
        load_mixture("mmrs_balaced")


def test_datasets_that_are_not_there_are_named_with_how_to_build_them(folder, tmp_path):
    path = _file(tmp_path / "m.yaml", "rule: proportional\nsources: [sea, dota, rsicd, toun]\n")
    with pytest.raises(EarthGPTError) as error:
        _planned(folder, path)
    for part in (
        "expected dota, rsicd, toun in",
        f"data build dota rsicd --root NATIVE --out {folder}",
        "no card of toun",
    ):
        assert part in str(error.value)


def test_datasets_without_a_question_of_the_recipe_are_told(folder, tmp_path, caplog):
    path = _file(tmp_path / "m.yaml", "rule: explicit\nweights: {town: 1.0, sea: 0}\n")
    assert _weights(_planned(folder, path)) == {"town": 1.0}
    assert "does not train on mixed, sea" in caplog.text
    alone = _file(tmp_path / "n.yaml", "rule: proportional\nsources: [town]\n")
    with pytest.raises(EarthGPTError, match="expected town in"):
        _planned(folder / "sea", alone)
