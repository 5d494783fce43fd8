"""Questions in free words (`paraphrases.yaml`): no template has them; `scripts/bench/wording.py` measures answers."""

import re
import string
from pathlib import Path

import pytest
import yaml

from earthgpt_jax.input.prompts.templates import json_templates, question_templates
from earthgpt_jax.records import Task

PARAPHRASES = yaml.safe_load(Path(__file__).with_name("paraphrases.yaml").read_text())
FIELDS = {"vqa": ["question"], "region_caption": ["box"], "grounding": ["phrase"]}


def _plain(text: str) -> str:
    """Return a text without differences that are none to a reader: case, spaces and punctuation."""
    return re.sub(r"[^a-z{}]+", " ", text.lower()).strip()


def test_every_task_has_thirty_and_so_has_json():
    assert set(PARAPHRASES) == {*Task, "json_hbb", "json_obb"}
    assert {name: len({_plain(text) for text in texts}) for name, texts in PARAPHRASES.items()} == dict.fromkeys(
        PARAPHRASES, 30
    )


@pytest.mark.parametrize("name", PARAPHRASES)
def test_no_template_has_a_paraphrase(name):
    templates = {_plain(text) for texts in question_templates().values() for text in texts}
    asking = {_plain(t.text.format_map(_Keep())) for rows in json_templates().values() for t in rows}
    assert {_plain(text) for text in PARAPHRASES[name]} & (templates | asking) == set()
    for text in PARAPHRASES[name]:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
        assert fields == FIELDS.get(name, []), text


class _Keep(dict):
    """Leave the fields of a template as they are."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def test_paraphrases_ask_for_the_form_of_the_answer():
    assert all(re.search("(?i)oriented|polygon", t) for name in ("obb", "json_obb") for t in PARAPHRASES[name])
    assert not any("oriented" in t or "polygon" in t for name in ("hbb", "json_hbb") for t in PARAPHRASES[name])
    assert all("JSON" in t for name in ("json_hbb", "json_obb") for t in PARAPHRASES[name])
