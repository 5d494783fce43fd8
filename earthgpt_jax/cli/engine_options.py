"""Options of the commands that run a model: the model, the sampling of answers, the mesh of devices."""

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
    add_parent(parser)
    group = parser.add_argument_group("inference")
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T",
        help="sampling temperature; 0 decodes greedily (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P",
        help="sample from the most likely tokens whose probabilities add up to P (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="sampling seed; the same seed reproduces the same answers (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--mesh",
        metavar="data=N,fsdp=N,tensor=N",
        help="mesh of this host's devices: questions are split over data and fsdp, attention heads and weights over "
        "tensor (default: questions over all devices, weights over as few as can hold them)",
    )


def add_parent(parser: argparse.ArgumentParser) -> None:
    """Add the option that every command with a model directory has."""
    parser.add_argument(
        "--parent", metavar="DIR",
        help="for a model directory that holds adapters alone, the model that they were trained on (default: where the "
        "directory records it)",
    )  # fmt: skip


def engine(args: argparse.Namespace, *, batch_size: int) -> Engine:
    """Return an engine for the model and options in `args`."""
    from earthgpt_jax import compilation
    from earthgpt_jax.inference.engine import Engine

    compilation.enable_cache()
    mesh, sampling = _mesh(args.mesh), _sampling(args)
    return Engine.from_model_dir(
        args.model, batch_size=batch_size, sampling=sampling, mesh=mesh, parent=args.parent
    )  # fmt: skip


def _sampling(args: argparse.Namespace) -> Sampling:
    from earthgpt_jax.inference.sampling import Sampling

    if args.top_p != 1 and not args.temperature:
        raise EarthGPTError(f"--top-p {args.top_p}: expected a --temperature above 0 with it; at 0 decoding is greedy")
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
                f"--mesh {text}: expected sizes of data, fsdp and tensor, such as data=2,tensor=4; got {part!r}"
            )
        sizes[name] = int(size)
    return MeshConfig(**sizes)
