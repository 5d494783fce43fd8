"""Benchmark cards: complete, about known datasets and metrics, and strict about which questions are compared."""

from pathlib import Path

import pytest

from earthgpt_jax.boxes import BOX_FORMATS
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import SPLITS, Role, load_cards
from earthgpt_jax.evaluation import benchmarks, predictions_file, scores
from earthgpt_jax.evaluation.benchmarks import Regime, benchmark
from earthgpt_jax.evaluation.metrics.meteor_spice import JavaMetric
from tests.support.answers import answer, truth

# Dataset cards that papers of this field report results on.
SOURCES = {
    "nwpu_resisc45", "clrs", "nasc_tg2", "nwpu_captions", "rsicd", "ucm_captions", "sydney_captions", "crsvqa",
    "rsvqa_lr", "rsvqa_hr", "floodnet_vqa", "rsivqa", "dior_rsvg", "dota", "dior", "hrsc2016", "nwpu_vhr10", "mar20",
    "ssdd", "hrsid", "air_sarship", "hit_uav", "sea_shipping", "infrared_security", "aerial_mancar",
    "double_light_vehicle", "oceanic_ship",
}  # fmt: skip


def test_every_card_has_a_known_dataset_split_task_and_box_format():
    sources = load_cards()
    all_cards = benchmarks.benchmarks()
    assert {card.source for card in all_cards.values()} == SOURCES
    for name, card in all_cards.items():
        source = sources[card.source]
        assert card.task in source.tasks, name
        assert card.split in SPLITS and card.box_format in BOX_FORMATS and card.question and card.protocol, name
        assert (card.regime is Regime.ZERO_SHOT) == (source.role is Role.ZERO_SHOT), name
        assert set(card.contaminated_by) <= sources.keys(), name
        assert {item.metric for item in card.published} <= set(card.metrics), name


def test_every_metric_of_a_card_is_computed():
    java = {metric.value for metric in JavaMetric}
    objects = (truth("ship", 10, 10, 50, 50), truth("ship", 0, 0, 100, 100))
    for name, card in benchmarks.benchmarks().items():
        row = answer("3", task=card.task.value, question_type="count", answer="3", references=("3",), objects=objects,
                     object_index=0, source=card.source)  # fmt: skip
        cell = scores.score([row], extras=(scores.Extra.AP,))[card.task]["all"]
        assert set(card.metrics) - java <= cell.keys(), name


def test_published_values_are_shown_with_what_limits_the_comparison(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    rows = [
        answer("[0.1,0.1,0.5,0.5]", id="0", task="grounding", source="dior_rsvg", objects=(truth("", 10, 10, 50, 50),),
               object_index=0),
        answer("x", id="1", task="classification", source="dior_rsvg", answer="y"),
    ]  # fmt: skip
    predictions_file.write(path, rows, header={})
    assert main(["score", str(path), "--benchmark", "dior_rsvg", "--samples", "5"]) == 0
    out = capsys.readouterr().out
    assert "| pr50 | 100.00 [0.62, 100.00] | 76.65 | second-hand |" in out
    assert "1 questions, but the complete benchmark has 7500: the results are not comparable" in out
    assert "the card does not pin its questions" in out and "models trained on dior have seen these images" in out
    assert main(["score", str(path), "--benchmark", "crsvqa"]) == 2
    assert "no answer to a question of crsvqa" in capsys.readouterr().err
    assert main(["score", str(path), "--benchmark", "dior_rsgv"]) == 2
    assert "did you mean 'dior_rsvg'?" in capsys.readouterr().err


def test_questions_can_be_pinned_and_synonyms_declared(tmp_path):
    text = (
        "{name: t, title: T, source: s, split: test, task: classification, regime: zero_shot, metrics: [top1], "
        "synonyms: {Golf field: [golf course]}%s}"
    )
    path = tmp_path / "t.yaml"
    rows = [answer("Golf course.", task="classification", answer="golf_field")]
    digest = predictions_file.digest(rows)
    path.write_text(text % f", questions_digest: '{digest}'")
    card = benchmarks.load(path)
    assert scores.score(benchmarks.select_answers(rows, card, path=path))["classification"]["all"]["top1"] == 1.0
    with pytest.raises(EarthGPTError, match=f"digest {digest}, got 1 questions with digest"):
        benchmarks.select_answers([answer("a", task="classification", answer="b")], card, path=Path("p"))
    path.write_text(text % ", metric: [f1]")
    with pytest.raises(EarthGPTError, match="an entry is missing, unknown or invalid"):
        benchmarks.load(path)


def test_question_types_that_are_not_on_the_card_are_left_out():
    rows = [
        answer("yes", id=question_type, task="vqa", question_type=question_type, answer="yes", source="rsvqa_hr")
        for question_type in ("comp", "area")
    ]
    assert [p.question_type for p in benchmarks.select_answers(rows, benchmark("rsvqa_hr_phili"), path=Path("p"))] == [
        "comp"
    ]
