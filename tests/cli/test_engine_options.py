"""Options of the commands that run a model."""

from __future__ import annotations

import pytest

from earthgpt_jax.cli import engine_options
from earthgpt_jax.cli.main import main
from earthgpt_jax.config import MeshConfig
from earthgpt_jax.synthetic import SyntheticSource


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--mesh", "tensor"],
            "expected sizes of data, fsdp and tensor, such as data=2,tensor=4; got 'tensor'",
        ),
        (["--mesh", "heads=2"], "got 'heads=2'"),
        (["--mesh", "data=2,data=4"], "got 'data=4'"),
        (["--mesh", "tensor=0"], "mesh: tensor: expected a positive number, got 0"),
        (["--mesh", "tensor=3,data=3"], "expected sizes that multiply to 8 devices"),
        (["--mesh", "tensor=8"], "llm.heads: 4 heads do not divide over tensor=8"),
        (["--top-p", "0.9"], "--top-p 0.9: expected a --temperature above 0 with it"),
        (["--temperature", "-1"], "sampling: expected temperature >= 0"),
        (["--temperature", "nan"], "sampling: expected temperature >= 0"),
        (["--temperature", "1", "--top-p", "0"], "top_p in (0, 1]"),
        (["--seed", "-3"], "seed in 0 to 2^32 - 1"),
    ],
)
def test_wrong_options_are_reported_before_a_model_is_loaded(tmp_path, capsys, words, message):
    image = tmp_path / "scene.png"
    image.write_bytes(SyntheticSource("test", 1)[0].image)
    assert main(["chat", str(image), "--question", "?", *words]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") < 6 and not out


def test_axes_of_the_mesh_have_defaults():
    assert engine_options._mesh(None) is None
    assert engine_options._mesh("tensor=4") == MeshConfig(tensor=4)
    assert engine_options._mesh("data=-1,fsdp=2") == MeshConfig(fsdp=2)
