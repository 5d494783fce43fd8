"""Exports with random weights, which several modules compare with our model."""

from __future__ import annotations

import pytest

from earthgpt_jax.input.tokenizer import train_tokenizer
from tests.support import nano
from tests.support.exported import Pair, write_pair


@pytest.fixture
def one_thread():
    """Use one thread: these shapes are so small that threads would mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    train_tokenizer(nano.dialogues(), vocab_size=640, path=path)
    return path


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory, vocabulary):
    """Return a cached function (variant, chat template) -> Pair; remote code is copied to pytest's folder, not to ~."""
    pairs: dict[tuple[str, str], Pair] = {}
    patch = pytest.MonkeyPatch()
    patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))

    def make(variant: str, chat: str = "plain") -> Pair:
        if (variant, chat) not in pairs:
            folder = tmp_path_factory.mktemp(f"{variant}_{chat}")
            pairs[variant, chat] = write_pair(folder, variant, tokenizer=vocabulary, chat=chat)
        return pairs[variant, chat]

    yield make
    patch.undo()


@pytest.fixture(scope="session")
def adapted(make_pair) -> Pair:
    return make_pair("adapted")


@pytest.fixture(scope="session")
def adapted_model(adapted):
    return adapted.model()
