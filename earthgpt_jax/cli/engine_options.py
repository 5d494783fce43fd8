"""The options of commands that ask a model: which one, on which devices, how its tokens are chosen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from earthgpt_jax.common.errors import EarthGPTError

if TYPE_CHECKING:
    from earthgpt_jax.config import MeshConfig
    from earthgpt_jax.inference.engine import Engine
    from earthgpt_jax.inference.sampling import Sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="an embedded model or a model directory (default: tiny)")
    group = parser.add_argument_group("how answers are made")
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest token (default); or drawn"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of this sum (default: 1)"
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the draws; the same draws the same (default: 0)"
    )
    group.add_argument(
        "--mesh",
        metavar="data=N,fsdp=N,tensor=N",
        help="how this host's devices share the work: rows over data and fsdp, heads and weights over tensor "
        "(default: rows over all, weights over as many as they need)",
    )


def engine(args: argparse.Namespace, *, batch_size: int) -> Engine:
    """The model that `args` ask for."""
    from earthgpt_jax.inference.engine import Engine

    chosen, how = _mesh(args.mesh), _sampling(args)
    return Engine.from_model_dir(args.model, batch_size=batch_size, sampling=how, mesh=chosen)


def _sampling(args: argparse.Namespace) -> Sampling:
    from earthgpt_jax.inference.sampling import Sampling

    if args.top_p != 1 and not args.temperature:
        raise EarthGPTError(
            f"--top-p {args.top_p}: expected a --temperature above 0 with it; at 0 the likeliest token is taken"
        )
    return Sampling(temperature=args.temperature, top_p=args.top_p, seed=args.seed)


def _mesh(text: str | None) -> MeshConfig | None:
    from earthgpt_jax.config import MeshConfig

    if text is None:
        return None
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in ("data", "fsdp", "tensor") or name in sizes or not size.removeprefix("-").isdigit():
            raise EarthGPTError(
                f"--mesh {text}: expected sizes of data, fsdp, tensor, as data=2,tensor=4; got {part!r}"
            )
        sizes[name] = int(size)
    return MeshConfig(**sizes)
