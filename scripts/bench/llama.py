"""Compare a training step of our LLaMA with that of transformers in PyTorch: useful tokens per second.

example:
  python scripts/bench/llama.py --size small --threads 2

Both use the same weights, samples, trainable parameters and AdamW, in float32, with the same number of threads; a step
is forward pass, backward pass and update. Every run starts from the same weights and repeats one batch. At each step
the losses of all runs on the same samples must agree to 1e-4, or the benchmark fails. Each implementation has its own
process, because in one process they would share an allocator and their waiting threads. Freed memory is kept, because
in a virtual machine it is expensive to get it back from the host. The runs take turns, step by step; a figure is the
median over the rounds, with the lower and the upper quartile.

The trainable parameters are the same in both: `instruct` scale and bias on the seven linear layers of each block,
`lora` LoRA of rank 16 on the same layers, `align` attention and norms, `full` all parameters. transformers itself has
neither scales nor LoRA; its linear layers are wrapped in the straightforward way.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.config import LINEARS, AdapterConfig, AdapterKind, DType, LlamaConfig, OptimConfig, Remat
from earthgpt_jax.convert import tables
from earthgpt_jax.models.llama import Llama, PackedAttention
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.losses import supervised_loss
from earthgpt_jax.training.execution import DEFAULT_EXECUTION
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.stages import Trainable

SIZES = {
    "tiny": LlamaConfig(vocab_size=1024, dim=128, depth=5, heads=4, kv_heads=4, ffn_dim=384),
    "small": LlamaConfig(vocab_size=4096, dim=256, depth=6, heads=4, kv_heads=4, ffn_dim=704),
    "medium": LlamaConfig(vocab_size=8192, dim=512, depth=8, heads=8, kv_heads=8, ffn_dim=1408),
}
TRAINED = {
    "instruct": r"blocks/.*/adapter/.*",
    "lora": r"blocks/.*/adapter/.*",
    "align": r"blocks/attn/[qkvo]/kernel|(blocks/(attn|mlp)_norm|norm)/scale",
    "full": r".*",
}
ADAPTERS = {"instruct": AdapterConfig(kind=AdapterKind.SCALE_BIAS), "lora": AdapterConfig(kind=AdapterKind.LORA)}
OPTIM = OptimConfig(steps=10**6, peak_lr=1e-4, clip_norm=1e9, weight_decay=0.0)
TOLERANCE = 1e-4
OURS, COMPILED = "ours", "theirs, compiled"
WHO = (OURS, "theirs", COMPILED)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed sequences [B, T]; segment 0 is padding, all other tokens are useful."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    weights: np.ndarray

    @property
    def useful(self) -> int:
        return int((self.segments > 0).sum())


@dataclasses.dataclass
class Way:
    """One implementation on one batch; `side` is the pipe to its process."""

    who: str
    kind: str
    batch: Batch
    side: Connection
    seconds: list[float] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)

    def once(self) -> None:
        self.side.send(self.kind)
        seconds, loss = self.side.recv()
        self.seconds.append(seconds)
        self.losses.append(loss)

    def rates(self) -> list[float]:
        """Return the useful tokens per second: lower quartile, median and upper quartile."""
        rates = [self.batch.useful / seconds for seconds in self.seconds]
        return statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of each implementation (default: 2)")
    parser.add_argument("--size", choices=SIZES, default="small", help="size of the model (default: small)")
    parser.add_argument(
        "--trained", choices=TRAINED, nargs="+", default=list(TRAINED), help="what to train (default: all)"
    )
    parser.add_argument("--samples", type=int, default=9, help="samples of the batch (default: 9)")
    parser.add_argument("--seq-len", type=int, default=768, help="length of packed sequences (default: 768)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default: 9)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time of the process, which is robust against other load; for one thread (default: wall)",
    )
    parser.add_argument(
        "--remat",
        type=Remat,
        choices=[policy for policy in Remat if policy is not Remat.AUTO],
        default=Remat.NONE,
        help="rematerialization of our implementation (default: none)",
    )
    parser.add_argument("--compile", action="store_true", help="also run transformers with torch.compile")
    args = parser.parse_args()
    # Inherited by the processes of both implementations.
    os.environ["NPROC"] = os.environ["OMP_NUM_THREADS"] = str(args.threads)  # XLA's and PyTorch's
    os.environ["GLIBC_TUNABLES"] = ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in {"hugetlb": 1, "mmap_threshold": 2**32, "trim_threshold": 2**33, "arena_max": 1}.items()
    )

    config, batches = SIZES[args.size], _batches(args)
    lengths = sorted(
        int((row == number).sum()) for row in batches["packed"].segments for number in range(1, row.max() + 1)
    )
    print(
        f"{args.size}: {config}\n{len(lengths)} samples of {lengths[0]} to {lengths[-1]} tokens, median "
        f"{statistics.median(lengths):.0f}; {args.threads} threads; jax {jax.__version__}"
    )
    table: list[tuple[str, ...]] = [
        ("trainable", "batch", "sequences x tokens", "useful", "ours, tokens/s", "", "against", "tokens/s", "", "ratio")
    ]
    for trained in args.trained:
        with contextlib.ExitStack() as stack:
            sides = {who: stack.enter_context(_side(who, trained, args)) for who in WHO[: 2 + args.compile]}
            ways = [Way(who, kind, batch, sides[who]) for kind, batch in batches.items() for who in sides]
            for number in range(args.rounds + 1):
                for way in ways:
                    way.once()
                _check(ways, number)
        for way in ways:
            del way.seconds[0]  # this step compiled
        rates = {(way.who, way.kind): way.rates() for way in ways}
        for way in ways:
            if way.who == OURS:
                continue
            ours, theirs = rates[OURS, way.kind], rates[way.who, way.kind]
            table.append(
                (trained, way.kind, "x".join(map(str, way.batch.tokens.shape)),
                 f"{way.batch.useful / way.batch.tokens.size:.0%}", *_shown(ours), way.who, *_shown(theirs),
                 f"{ours[1] / theirs[1]:.2f}")
            )  # fmt: skip
        packed = rates[OURS, "packed"]
        for who in dict.fromkeys(way.who for way in ways if way.who != OURS):
            padded = rates[who, "padded"]
            table.append(
                (trained, "ours packed, theirs padded", "", "", *_shown(packed), who, *_shown(padded),
                 f"{packed[1] / padded[1]:.2f}")
            )  # fmt: skip
        print("\n".join(align_columns(table)), flush=True)


def _shown(rates: Sequence[float]) -> tuple[str, str]:
    low, middle, high = rates
    return f"{middle:.0f}", f"{low:.0f}-{high:.0f}"


# --------------------------------------------------------------------------------------------- samples
def _batches(args: argparse.Namespace) -> dict[str, Batch]:
    vocab = SIZES[args.size].vocab_size
    samples = _samples(args.samples, vocab=vocab)
    return {
        "packed": _packed(samples, args.seq_len),
        "padded": _padded(samples),
        "no padding": _whole(args.seq_len, 2, vocab=vocab),
    }


def _samples(count: int, *, vocab: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return tokens and loss weights of samples as long as those of instruction data; the last third is the answer."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(200), 0.6, count)), 32, 1024).astype(int)
    out = []
    for length in lengths:
        weights = (np.arange(length) >= 2 * length // 3).astype(np.float32)
        out.append((rng.integers(3, vocab, length), weights))
    return out


def _rows(rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], length: int) -> Batch:
    tokens, positions, segments = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    weights = np.zeros((len(rows), length), np.float32)
    for row, held in enumerate(rows):
        at = 0
        for number, (ids, heavy) in enumerate(held, start=1):
            here = slice(at, at + len(ids))
            tokens[row, here], positions[row, here], segments[row, here] = ids, np.arange(len(ids)), number
            weights[row, here] = heavy
            at += len(ids)
    return Batch(tokens, positions, segments, weights)


def _packed(samples: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> Batch:
    """Pack the samples first-fit, longest first."""
    rows: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for sample in sorted(samples, key=lambda sample: -len(sample[0])):
        for held in rows:
            if sum(len(ids) for ids, _ in held) + len(sample[0]) <= length:
                held.append(sample)
                break
        else:
            rows.append([sample])
    return _rows(rows, length)


def _padded(samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Return one sequence per sample, padded to the longest sample."""
    return _rows([[sample] for sample in samples], max(len(ids) for ids, _ in samples))


def _whole(length: int, rows: int, *, vocab: int) -> Batch:
    """Return sequences of one sample each, without padding."""
    rng = np.random.default_rng(1)
    ones = np.ones(length, np.float32) * (np.arange(length) >= 2 * length // 3)
    return _rows([[(rng.integers(3, vocab, length), ones)] for _ in range(rows)], length)


# ------------------------------------------------------------------------------------------------ ways
@contextlib.contextmanager
def _side(who: str, trained: str, args: argparse.Namespace) -> Iterator[Connection]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, who, trained, args), daemon=True)
    process.start()
    there.close()  # so that recv() fails if the process ends
    try:
        yield here
    finally:
        here.close()
        process.join()


def _serve(asked: Connection, who: str, trained: str, args: argparse.Namespace) -> None:
    """Run training steps on request: receive the name of a batch, send the step's seconds and its loss."""
    config, clock = SIZES[args.size], CLOCKS[args.clock]
    adapter = ADAPTERS.get(trained, AdapterConfig())
    graphdef, params = params_lib.split_module(
        Llama(config, adapter=adapter, rngs=nnx.Rngs(params=0), dtype=DType.FLOAT32)
    )
    chosen = [path for path in params if re.fullmatch(TRAINED[trained], path)]
    steps = {}
    for kind, batch in _batches(args).items():
        if who == OURS:
            steps[kind] = _ours(graphdef, params, chosen, batch, remat=args.remat)
        else:
            steps[kind] = _theirs(config, trained, params, batch, compiled=who == COMPILED)
    with contextlib.suppress(EOFError):
        while True:
            step = steps[asked.recv()]
            started = clock()
            loss = step()
            asked.send((clock() - started, loss))


def _check(ways: Sequence[Way], number: int) -> None:
    """Exit with an error unless all runs on the same samples have the same loss at this step."""
    for kinds in (("packed", "padded"), ("no padding",)):
        losses = {(way.who, way.kind): way.losses[number] for way in ways if way.kind in kinds}
        if max(losses.values()) - min(losses.values()) > TOLERANCE:
            sys.exit(f"step {number}: losses differ by more than {TOLERANCE}: {losses}")


def _ours(
    graphdef: nnx.GraphDef, params: params_lib.Params, chosen: Sequence[str], batch: Batch, *, remat: Remat
) -> Callable[[], float]:
    rules = {path: Trainable(group="all", decay=False) for path in chosen}
    update = make_optimizer(dataclasses.replace(OPTIM, warmup_steps=0), rules)
    held, frozen = params_lib.split(params, chosen)
    held = jax.tree.map(jnp.copy, held)  # donated below
    arrays = [jnp.asarray(value) for value in (batch.tokens, batch.positions, batch.segments, batch.weights)]

    def loss(
        held: params_lib.Params, frozen: params_lib.Params, tokens: Any, positions: Any, segments: Any, weights: Any
    ) -> jax.Array:
        llm = params_lib.merge_module(graphdef, params_lib.merge(held, frozen))
        attention = PackedAttention(make_attention_mask(segments, 0 * segments))
        x = llm(llm.embed_tokens(tokens), positions=positions, attention=attention, remat=remat).hidden
        total, weight = supervised_loss(x, llm.unembedding(), tokens, weights, chunk=DEFAULT_EXECUTION.loss_chunk)
        return total / weight

    def step(state: tuple, frozen: params_lib.Params, *arrays: jax.Array) -> tuple[tuple, jax.Array]:
        held, moments = state
        value, gradients = jax.value_and_grad(loss)(held, frozen, *arrays)
        norm = optax.tree.norm(gradients)
        updates, moments = update.update(gradients, moments, held, loss=value, norm=norm)
        return (optax.apply_updates(held, updates), moments), value

    compiled = jax.jit(step, donate_argnums=0)
    state: Any = (held, update.init(held))

    def run() -> float:
        nonlocal state
        state, value = compiled(state, frozen, *arrays)
        jax.block_until_ready(state)
        return float(value)

    return run


def _theirs(
    config: LlamaConfig, trained: str, params: params_lib.Params, batch: Batch, *, compiled: bool
) -> Callable[[], float]:
    import torch

    torch.set_num_threads(int(os.environ["NPROC"]))
    model = _transformers(config, trained, params)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(
        chosen, lr=OPTIM.peak_lr, betas=(OPTIM.b1, OPTIM.b2), eps=OPTIM.eps, weight_decay=0.0, fused=True
    )
    run_model = torch.compile(model) if compiled else model
    tokens = torch.from_numpy(batch.tokens).long()
    labels = torch.where(torch.from_numpy(batch.weights) > 0, tokens, -100)
    how: dict[str, Any] = {"position_ids": torch.from_numpy(batch.positions).long()}
    if batch.segments.max() > 1:  # packed: the attention mask that SDPA takes
        segments = torch.from_numpy(batch.segments)
        same = segments[:, :, None] == segments[:, None, :]
        how["attention_mask"] = (same & torch.ones_like(same).tril())[:, None]
    elif (batch.segments == 0).any():
        how["attention_mask"] = torch.from_numpy(batch.segments).long()

    def run() -> float:
        loss = run_model(input_ids=tokens, labels=labels, use_cache=False, **how).loss
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.item()

    return run


def _transformers(config: LlamaConfig, trained: str, params: params_lib.Params) -> Any:
    """Return a `LlamaForCausalLM` with our weights, whose trainable parameters require gradients."""
    import torch
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(
        TheirConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.ffn_dim,
            num_hidden_layers=config.depth, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
            rms_norm_eps=config.norm_eps, rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    )  # fmt: skip
    table = tables.llama_hf(config)
    ours = {path: value for path, value in params.items() if "/adapter/" not in path}
    shapes = {path: tuple(value.shape) for path, value in ours.items()}
    state = {}
    for entry in table.steps(shapes, where="benchmark"):
        value = np.asarray(ours[entry.path] if entry.layer is None else ours[entry.path][entry.layer])
        state[entry.key] = torch.from_numpy(np.array(entry.transform.to_checkpoint(value)))
    model.load_state_dict(state)
    model.requires_grad_(trained == "full")
    if trained == "align":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".self_attn." in name or "norm" in name)
    if trained in ADAPTERS:
        for layer, block in enumerate(model.model.layers):
            for part, linears in ((block.self_attn, LINEARS[:4]), (block.mlp, LINEARS[4:])):
                for name in linears:
                    where = f"blocks/{'attn' if name in LINEARS[:4] else 'mlp'}/{name}/adapter"
                    leaves = {
                        path.rsplit("/", 1)[1]: torch.from_numpy(np.array(value[layer]))
                        for path, value in params.items()
                        if path.startswith(where)
                    }
                    setattr(part, f"{name}_proj", _wrapped(getattr(part, f"{name}_proj"), leaves))
    return model.train()


def _wrapped(linear: Any, leaves: dict[str, Any]) -> Any:
    """Wrap a linear layer with our adapter, in the usual PyTorch way."""
    import torch

    class Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear
            for name, value in leaves.items():
                self.register_parameter(name, torch.nn.Parameter(value))

    class ScaleBias(Adapted):
        def forward(self, x: Any) -> Any:
            return self.scale * (self.linear(x) + self.bias)

    class Lora(Adapted):
        def forward(self, x: Any) -> Any:
            return self.linear(x) + (x @ self.a) @ self.b

    return Lora() if "a" in leaves else ScaleBias()


if __name__ == "__main__":
    main()
