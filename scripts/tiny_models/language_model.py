"""Train the LLM, a small LLaMA, as a language model on scenes described by text or by maps. It never sees an image."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from tqdm import tqdm

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import AdapterConfig, Config
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import model_dir
from earthgpt_jax.models.earthgpt import EarthGPT, ImageTokens
from earthgpt_jax.models.llama import Llama, PackedAttention
from earthgpt_jax.models.perception import Projector
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.losses import next_token_loss
from earthgpt_jax.params import Params
from earthgpt_jax.sharding.mesh import data_parallel
from tiny_models.corpus import CODES, Corpus, Sequences
from tiny_models.scenes import HELD_OUT, dataset, dense_dataset
from tiny_models.texts import tokenizer
from tiny_models.transfer import language_model_of

# Share of exhaustive sequences in each round. Among long answers, yes/no answers are not learned: they are two of two
# hundred tokens, and their loss does not decrease until the model can read the map.
EXHAUSTIVE_SHARES = (0.0, 1.0, 0.3)
FURTHER_SHARE = 0.3  # in each round of a language model that was trained before
SAVED_EVERY = 100  # steps


class MapReader(nnx.Module):
    """A LLaMA that reads maps where EarthGPT reads images. The projector of the maps is discarded after training."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        dim = config.model.llm.dim
        self.llm = Llama(config.model.llm, adapter=AdapterConfig(), rngs=rngs, dtype=config.model.compute_dtype)
        self.image_tokens = ImageTokens(dim, rngs=rngs)
        self.maps = Projector(CODES, dim, rngs=rngs, dtype=config.model.compute_dtype)

    def __call__(self, batch: Sequences) -> jax.Array:
        """Return the logits, f32[B, T, V]."""
        x = EarthGPT.embed(self, batch.tokens, batch.slots, self.maps(batch.codes))  # type: ignore[arg-type]
        attention = PackedAttention(make_attention_mask(batch.segments, batch.question_index))
        return self.llm.logits(self.llm(x, positions=batch.positions, attention=attention).hidden)


def train_llm(workdir: Path, config: Config, *, rounds: Sequence[int], count: int, start: str = "") -> Path:
    """Train the LLM and return the file of its parameters; a finished file or round is not trained again.

    Args:
        rounds: steps of each round; `EXHAUSTIVE_SHARES` says what each round reads.
        count: number of training scenes.
        start: embedded model whose LLM is trained further (`transfer`); "" for a random one.
    """
    path = workdir / "llm.npz"
    if path.exists():
        return path
    graphdef, params = params_lib.split_module(MapReader(config, rngs=nnx.Rngs(params=1)))
    vocabulary, records = tokenizer(workdir, config), open_records(dataset(workdir, count=count), "train")
    corpus = Corpus(
        records=records,
        dense={name: value for name, value in dense_dataset(workdir, count=count).items() if name != "images"},
        config=config,
        tokenizer=Tokenizer(vocabulary),
        annotated=next(iter(records.annotated.values())),
    )
    initial, trained = params, dict[str, jax.Array]()
    shares = (FURTHER_SHARE,) if start else EXHAUSTIVE_SHARES
    if start:
        trained = {key: jnp.asarray(value) for key, value in language_model_of(start, tokenizer=vocabulary).items()}
    for number, steps in enumerate(rounds):
        saved = workdir / f"llm_{number}.npz"
        if not saved.exists():
            share = shares[min(number, len(shares) - 1)]
            # Training donates its parameters, so the initial ones are copied for each round.
            begin = {key: jnp.array(value) for key, value in (initial | trained).items()}
            params = _train_round(
                graphdef, begin, corpus, steps=steps, seed=number, exhaustive_share=share,
                progress=workdir / f"llm_{number}_progress.npz",
            )  # fmt: skip
            # The projector of the maps is not saved: each round trains a new one, as stage `align` will have to.
            np.savez(saved, **{k: np.asarray(v) for k, v in params.items() if not k.startswith("maps/")})  # type: ignore[arg-type]
        trained = {key: jnp.asarray(value) for key, value in np.load(saved).items()}
    np.savez(path, **model_dir.to_host(trained))  # type: ignore[arg-type]
    return path


def held_out_accuracy(
    logits: Callable[[Sequences], jax.Array], corpus: Corpus, *, scenes: int = 128, batch_size: int = 32
) -> dict[str, float]:
    """Return question type -> share of answers about held-out maps that greedy decoding gets right.

    Args:
        logits: returns f32[B, T, V] for a batch.
        scenes: number of held-out scenes.
    """
    correct: dict[str, list[bool]] = collections.defaultdict(list)
    first = len(corpus.records) - HELD_OUT
    indices = range(first, first + scenes)
    sequences = [corpus.exhaustive(index, np.random.default_rng((13, index))) for index in indices]
    for start in range(0, scenes, batch_size):
        chunk = sequences[start : start + batch_size]
        batch = Sequences(*map(np.stack, zip(*(sequence for sequence, _ in chunk), strict=True)))
        predicted = np.asarray(logits(batch).argmax(-1))[:, :-1]
        wrong = (predicted != batch.tokens[:, 1:]) & (batch.weights[:, 1:] > 0)
        for (_, questions), wrong_tokens, question_index in zip(chunk, wrong, batch.question_index[:, 1:], strict=True):
            for number, question in enumerate(questions, 1):
                correct[question.question_type].append(not wrong_tokens[question_index == number].any())
    return {question_type: float(np.mean(values)) for question_type, values in sorted(correct.items())}


def _train_round(
    graphdef: nnx.GraphDef,
    params: Params,
    corpus: Corpus,
    *,
    steps: int,
    seed: int,
    exhaustive_share: float,
    progress: Path,
    batch_size: int = 16,
) -> Params:
    """Train for one round; continue from `progress`, which holds the state of an interrupted one."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 5e-3, min(100, steps // 8), steps)
    # Muon for the matrices of the blocks, AdamW for the rest: reaches the loss of AdamW alone in 3/4 of the steps.
    muon = optax.contrib.muon(
        rate,
        consistent_rms=0.2,  # the usual RMS of AdamW's updates, so that both use one learning rate
        weight_decay=0.01,
        adam_b2=0.98,
        adam_weight_decay=0.01,
        muon_weight_dimension_numbers={
            path: optax.contrib.MuonDimensionNumbers(1, 2) if value.ndim == 3 else None
            for path, value in params.items()
        },
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), muon)
    placement = data_parallel(batch_size)
    params = jax.device_put(params, placement.replicated)
    state = jax.device_put(optimizer.init(params), placement.replicated)

    def forward(params: Params, batch: Sequences) -> jax.Array:
        return params_lib.merge_module(graphdef, params)(batch)

    def loss(params: Params, batch: Sequences) -> jax.Array:
        total, weight = next_token_loss(forward(params, batch), jnp.asarray(batch.tokens), jnp.asarray(batch.weights))
        return total / weight

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Params, state: optax.OptState, batch: Sequences) -> tuple[Params, optax.OptState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    evaluate = jax.jit(forward)
    first = seed * 2**24  # each round reads other sequences of the corpus
    done, (params, state) = _load_progress(progress, (params, state))
    sequence = functools.partial(corpus.sequence, exhaustive_share=exhaustive_share)
    sequences = grain.MapDataset.range(first + done * batch_size, first + steps * batch_size).map(sequence)
    batches = iter(
        sequences.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)).batch(batch_size)
    )
    bar = tqdm(range(done, steps), initial=done, total=steps, desc=f"llm, round {seed}", mininterval=5)
    for step in bar:
        params, state, value = update(params, state, jax.device_put(Sequences(*next(batches)), placement.batch))
        if (step + 1) % 50 == 0:
            bar.write(f"{step + 1} loss {float(value):.4f}")
        if (step + 1) % SAVED_EVERY == 0:
            _save_progress(progress, step + 1, (params, state))
        if (step + 1) % 100 == 0:
            accuracies = held_out_accuracy(functools.partial(evaluate, params), corpus)
            bar.write(" ".join(f"{name}={accuracy:.3f}" for name, accuracy in accuracies.items()))
    return params


def _save_progress(path: Path, step: int, state: Any) -> None:
    """Save the number of steps done and a tree of arrays."""
    leaves = {f"{number:04}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(state))}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, step=step, **leaves)  # type: ignore[arg-type]
    partial.replace(path)


def _load_progress(path: Path, state: Any) -> tuple[int, Any]:
    """Return what `_save_progress` saved, placed as `state` is; 0 and `state` if there is nothing."""
    if not path.exists():
        return 0, state
    saved = dict(np.load(path))
    step = int(saved.pop("step"))
    leaves, structure = jax.tree.flatten(state)
    placed = [jax.device_put(saved[name], leaf.sharding) for name, leaf in zip(sorted(saved), leaves, strict=True)]
    return step, jax.tree.unflatten(structure, placed)
