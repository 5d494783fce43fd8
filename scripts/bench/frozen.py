"""Compare the loss of a model with its frozen parameters in float32, bfloat16 and int8, and their sizes.

example:
  python scripts/bench/frozen.py --model tiny --config tiny:instruct

Runs the forward pass on packed sequences of synthetic scenes that no embedded model was trained on (or on the test
split of `--data`), with the recipe's packing and questions. The trainable parameters of its stage stay float32.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.config import FrozenDType, load
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.packing.training_data import load_training_data
from earthgpt_jax.input.pipeline import InputSpec, PackedSequences, train_batches
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.quantized import cast_frozen
from earthgpt_jax.ops.losses import supervised_loss
from earthgpt_jax.sharding.mesh import data_parallel
from earthgpt_jax.synthetic import SyntheticSource
from earthgpt_jax.training.execution import DEFAULT_EXECUTION
from earthgpt_jax.training.initial import load_initial_params
from earthgpt_jax.training.prefetch import device_batch
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.step import hidden


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="an embedded model or a model directory (default: tiny)")
    parser.add_argument("--config", default="tiny:instruct", help="recipe (default: tiny:instruct)")
    parser.add_argument("--data", type=Path, help="a dataset directory with a test split (default: synthetic scenes)")
    parser.add_argument("--scenes", type=int, default=200, help="number of synthetic scenes (default: 200)")
    parser.add_argument("--batches", type=int, default=8, help="number of batches (default: 8)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "data"
        if args.data is None:
            write_dataset({"test": SyntheticSource("test", args.scenes)}, out=data, name="synthetic")
        _compare(args.model, args.config, data, args.batches)


def _compare(model: str, recipe: str, data: Path, count: int) -> None:
    config = load(recipe, [f"--config.init={model}", f"--config.data.source={data}", "--config.data.split=test"])
    start, params = load_initial_params(config)
    rows = PackedSequences.of(load_training_data(config, tokenizer=Tokenizer(start.tokenizer)), InputSpec.of(config))
    place = data_parallel(1)
    batches = [device_batch(batch, place.batch) for _, batch in itertools.islice(train_batches(rows), count)]
    graphdef, _ = earthgpt.abstract(config.model)
    trainable, frozen = params_lib.split(params, trainable_paths(config, params))

    @jax.jit
    def loss(frozen: params_lib.Params, batch: Batch) -> jax.Array:
        module = params_lib.merge_module(graphdef, params_lib.merge(trainable, frozen))
        features = module.encode(batch.images.reshape(-1, *batch.images.shape[2:]))
        x = hidden(module, features, batch, execution=DEFAULT_EXECUTION)
        return jnp.stack(
            supervised_loss(
                x, module.llm.unembedding(), batch.tokens, batch.loss_weights, chunk=DEFAULT_EXECUTION.loss_chunk
            )
        )

    table: list[tuple[str, ...]] = [("frozen", "MB", "of which kernels", "loss", "difference")]
    reference = None
    for dtype in FrozenDType:
        held = cast_frozen(frozen, dtype)
        total, weight = np.sum(
            [np.asarray(loss(held, batch), np.float64) for batch in tqdm(batches, desc=dtype)], axis=0
        )
        value = total / weight
        reference = value if reference is None else reference
        kernels = {path: array for path, array in held.items() if path.startswith("llm/blocks/")}
        table.append(
            (dtype, f"{_bytes(held) / 1e6:.2f}", f"{_bytes(kernels) / 1e6:.2f}", f"{value:.5f}",
             f"{value - reference:+.5f} ({value / reference - 1:+.2%})")
        )  # fmt: skip
    print(f"{model}, {recipe}: {int(weight)} supervised tokens")
    print("\n".join(align_columns(table)))


def _bytes(tree: dict) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
