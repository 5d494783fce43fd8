"""Mixtures: which datasets are trained on and how often, by hand and in packing schedules."""

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
    """Three datasets: 8 captions of two sensors, 2 of SAR images, 18 of optical ones."""
    folder = tmp_path_factory.mktemp("datasets")
    sensors = {
        "mixed": [Sensor.OPTICAL] * 5 + [Sensor.SAR] * 3,
        "sea": [Sensor.SAR] * 2,
        "town": [Sensor.OPTICAL] * 18,
    }
    for name, of_records in sensors.items():
        records = [_record(name, number, sensor) for number, sensor in enumerate(of_records)]
        write_dataset({"train": records}, out=folder / name, name=name)
    return folder


def _config(mixture: object = "", *overrides: str) -> Config:
    fields = [f"data.mixture={str(mixture)!r}", "data.task_weights={'caption': 1.0}", *overrides]
    return config_lib.load("tiny:instruct", [f"--config.{field}" for field in fields])


def _load(folder: Path, mixture: object = "", *overrides: str) -> TrainingData:
    tokenizer = Tokenizer(assets_path("tiny", "tokenizer.model"))
    config = _config(mixture, f"data.source={str(folder)!r}", *overrides)
    return load_training_data(config, tokenizer=tokenizer, workers=1)


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _weights(data: TrainingData) -> dict[str, float]:
    return {source.name: source.weight for source in data.schedule.sources}


def test_the_mixtures_in_the_repository():
    trained = {card.name for card in load_cards().values() if card.role is Role.TRAINED}
    files = {path.stem: load_mixture(path.stem) for path in data_path("mixtures").glob("*.yaml")}
    assert set(files) == {"mmrs", "mmrs_balanced", "mmrs_released", "small_real"}
    assert files["small_real"].weights.keys() <= load_cards().keys()
    assert len(files["mmrs"].sources) == 34 and set(files["mmrs"].sources) == trained
    assert set(files["mmrs_released"].sources) == {name for name in load_cards() if name.startswith("mmrs1m_")}
    assert files["mmrs_balanced"].sensor_weight(Sensor.SAR) > 1
    assert files["mmrs_balanced"].sensor_weight(Sensor.OPTICAL) == 1


def test_weights_by_hand():
    questions = {"small": 100.0, "large": 900.0, "none": 0.0}
    assert Mixture(rule=Rule.PROPORTIONAL).weigh(questions) == dict.fromkeys(questions, 1.0)
    flat = Mixture(rule=Rule.TEMPERATURE, temperature=2.0).weigh(questions)  # roots 10 and 30 share 1,000 questions
    assert flat == {"small": 2.5, "large": pytest.approx(0.833333), "none": 1.0}
    explicit = Mixture(rule=Rule.EXPLICIT, weights={"small": 3.0, "large": 0.0})
    assert explicit.weigh({"small": 100.0}) == {"small": 3.0}
    assert [explicit.uses(name) for name in questions] == [True, False, False]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=9), st.floats(0.5, 20))
def test_temperature_keeps_the_total_and_flattens_the_shares(sizes, temperature):
    questions = {str(number): float(size) for number, size in enumerate(sizes)}
    weights = Mixture(rule=Rule.TEMPERATURE, temperature=temperature).weigh(questions)
    asked = {name: weights[name] * size for name, size in questions.items()}
    assert sum(asked.values()) == pytest.approx(sum(sizes), rel=1e-4)
    for name, size in questions.items():
        expected = (size / questions["0"]) ** (1 / temperature)
        assert asked[name] / asked["0"] == pytest.approx(expected, rel=1e-4)


def test_without_a_mixture_every_dataset_is_read_once_per_epoch(folder):
    data = _load(folder)
    assert _weights(data) == dict.fromkeys(NAMES, 1.0)
    assert [source.name for source in data.sources] == list(NAMES)
    read = collections.Counter(
        data.sources[sample.source][sample.record].id
        for number in range(data.schedule.sequences_per_cycle)
        for sample in data.schedule[number]
    )
    assert len(read) == 28 and set(read.values()) == {1}


def test_max_images_is_the_recipes(folder):
    schedule = _load(folder, "", "data.max_images=0").schedule
    assert schedule.max_images == schedule.budget.seq_len // (schedule.budget.prefix_tokens + 1)
    assert _load(folder, "", "data.max_images=3").schedule.max_images == 3
    with pytest.raises(EarthGPTError, match="max_images: expected a number of images"):
        _config("", "data.max_images=-1")


def test_a_dataset_is_split_by_sensor_where_the_weights_differ(folder, tmp_path):
    both = _load(folder, _file(tmp_path / "m.yaml", "rule: proportional\nsensors: {sar: 2.0, infrared: 7}\n"))
    assert _weights(both) == {"mixed/optical": 1.0, "mixed/sar": 2.0, "sea": 2.0, "town": 1.0}
    assert both.sources[0] is both.sources[1]
    for source, read in zip(both.schedule.sources, both.sources, strict=True):
        sensors = {read[number].sensor.value for number in source.records}
        assert len(sensors) == 1 and (source.name.partition("/")[2] or next(iter(sensors))) in sensors
    equal = _load(folder, _file(tmp_path / "n.yaml", "rule: proportional\nsensors: {sar: 3, optical: 3.0}\n"))
    assert _weights(equal) == dict.fromkeys(NAMES, 3.0)
    one = _load(folder, _file(tmp_path / "o.yaml", "rule: proportional\nsensors: {optical: 0}\n"))
    assert _weights(one) == {"mixed/sar": 1.0, "sea": 1.0}


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]), st.sampled_from([0.1, 0.5, 0.75, 2.0]), st.sampled_from([0.5, 1.0]))
def test_epochs_per_source_are_those_of_a_cycles_sequences(folder, sea, sar, caption):
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(f"rule: explicit\nweights: {{mixed: 1.0, sea: {sea}}}\nsensors: {{sar: {sar}}}\n")
    schedule = _load(folder, path, f"data.task_weights={{'caption': {caption}}}").schedule
    asked: collections.Counter[int] = collections.Counter()
    for number in range(schedule.sequences_per_cycle, 2 * schedule.sequences_per_cycle):
        for sample in schedule[number]:
            asked[sample.source] += len(sample.questions)
    epochs = schedule.epochs_per_source(schedule.sequences_per_cycle)
    for number, source in enumerate(schedule.sources):
        times = schedule.cycle.times[source.name, "caption"]
        assert asked[number] == times * len(source.records)
        assert epochs[source.name] == pytest.approx(asked[number] / (caption * len(source.records)))
        if (source.name, "caption") not in schedule.cycle.rounded:
            assert epochs[source.name] == pytest.approx(source.weight * schedule.cycle.epochs)


def test_temperature_in_a_schedule(folder, tmp_path):
    path = _file(tmp_path / "m.yaml", "rule: temperature\ntemperature: 2\nsources: [sea, town]\n")
    assert _weights(_load(folder, path)) == {"sea": 2.5, "town": pytest.approx(15 / 18, rel=1e-5)}  # roots 1 : 3


@pytest.mark.parametrize(
    ("text", "messages"),
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
                "weights.a: expected a finite number of at least 0",
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
def test_an_invalid_file_is_refused_with_all_its_problems(tmp_path, text, messages):
    path = _file(tmp_path / "m.yaml", text)
    with pytest.raises(EarthGPTError) as error:
        load_mixture(str(path))
    assert all(part in str(error.value) for part in [str(path), *messages]), error.value


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(EarthGPTError, match="did you mean 'mmrs_balanced'"):
        load_mixture("mmrs_balaced")


def test_missing_datasets_are_named_with_the_command_that_builds_them(folder, tmp_path):
    path = _file(tmp_path / "m.yaml", "rule: proportional\nsources: [sea, dota, rsicd, toun]\n")
    with pytest.raises(EarthGPTError) as error:
        _load(folder, path)
    for part in (
        "expected dota, rsicd, toun in",
        f"data build dota rsicd --root NATIVE --out {folder}",
        "no card for toun",
    ):
        assert part in str(error.value)


def test_datasets_that_are_not_trained_on_are_logged(folder, tmp_path, caplog):
    path = _file(tmp_path / "m.yaml", "rule: explicit\nweights: {town: 1.0, sea: 0}\n")
    assert _weights(_load(folder, path)) == {"town": 1.0}
    assert "does not train on mixed, sea" in caplog.text
    alone = _file(tmp_path / "n.yaml", "rule: proportional\nsources: [town]\n")
    with pytest.raises(EarthGPTError, match="expected town in"):
        _load(folder / "sea", alone)
