"""DINOv2 and ConvNeXt against arrays computed by the upstream PyTorch codes, fp32, atol 2e-5 (upstream's own
distance to float64 is about 5e-6)."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import ConvNeXtConfig, DType, Mlp, PositionRule, ViTConfig
from earthgpt_jax.models.convnext import ConvNeXt
from earthgpt_jax.models.vit import ViT

TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def _stack(weights: dict, prefix: str, depth: int, name: str) -> np.ndarray:
    return np.stack([weights[f"{prefix}.{i}.{name}"] for i in range(depth)])


def _linear(weights: dict, prefix: str, depth: int, name: str, path: str) -> dict:
    return {
        f"{path}/kernel": _stack(weights, prefix, depth, f"{name}.weight").transpose(0, 2, 1),
        f"{path}/bias": _stack(weights, prefix, depth, f"{name}.bias"),
    }


def _norm(weights: dict, prefix: str, depth: int, name: str, path: str) -> dict:
    return {
        f"{path}/scale": _stack(weights, prefix, depth, f"{name}.weight"),
        f"{path}/bias": _stack(weights, prefix, depth, f"{name}.bias"),
    }


def _hub_vit(weights: dict, config: ViTConfig) -> dict:
    depth, dim = config.depth, config.dim
    out = {
        "cls": weights["cls_token"][0, 0],
        "position": weights["pos_embed"][0],
        "patch/kernel": weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, dim),
        "patch/bias": weights["patch_embed.proj.bias"],
        "norm/scale": weights["norm.weight"],
        "norm/bias": weights["norm.bias"],
        "blocks/ls1": _stack(weights, "blocks", depth, "ls1.gamma"),
        "blocks/ls2": _stack(weights, "blocks", depth, "ls2.gamma"),
    }
    for name in ("norm1", "norm2"):
        out |= _norm(weights, "blocks", depth, name, f"blocks/{name}")
    out |= _linear(weights, "blocks", depth, "attn.proj", "blocks/attn/o")
    qkv = _linear(weights, "blocks", depth, "attn.qkv", "qkv")
    for index, name in enumerate("qkv"):
        part = slice(index * dim, (index + 1) * dim)
        out[f"blocks/attn/{name}/kernel"] = qkv["qkv/kernel"][:, :, part]
        out[f"blocks/attn/{name}/bias"] = qkv["qkv/bias"][:, part]
    names = {"fc1": "fc1", "fc2": "fc2"} if config.mlp is Mlp.GELU else {"w12": "fc12", "w3": "fc3"}
    for theirs, ours in names.items():
        out |= _linear(weights, "blocks", depth, f"mlp.{theirs}", f"blocks/mlp/{ours}")
    return out


def _load(module: nnx.Module, weights: dict) -> nnx.Module:
    graphdef, expected = params_lib.split_module(module)
    params_lib.check_same_shapes(expected, weights, where="golden")
    return params_lib.merge_module(graphdef, {path: jax.numpy.asarray(value) for path, value in weights.items()})


@pytest.mark.golden
@pytest.mark.parametrize("name", ["mlp", "swiglu"])
def test_dinov2_taps_match_the_hub_code(goldens, name):
    weights = load_file(goldens / "dinov2_hub" / f"{name}.safetensors")
    meta = json.loads((goldens / "dinov2_hub" / f"{name}.json").read_text())
    arrays = np.load(goldens / "dinov2_hub" / f"{name}.npz")
    ffn = weights["blocks.0.mlp.fc1.weight" if name == "mlp" else "blocks.0.mlp.w12.weight"].shape[0]
    squares = [size for size in meta["sizes"] if size[0] == size[1]]
    assert len(squares) >= 2
    for height, width in squares:
        config = ViTConfig(
            image_size=height, patch_size=14, dim=meta["embed_dim"], depth=meta["depth"], heads=meta["num_heads"],
            ffn_dim=ffn if name == "mlp" else ffn // 2, grid=meta["img_size"] // 14,
            mlp=Mlp.GELU if name == "mlp" else Mlp.SWIGLU, position_rule=PositionRule.HUB,
        )  # fmt: skip
        vit = _load(ViT(config, rngs=nnx.Rngs(0), dtype=DType.FLOAT32), _hub_vit(weights, config))
        key = f"{height}x{width}"
        images = arrays[f"{key}/input"].transpose(0, 2, 3, 1)
        outputs = nnx.jit(vit.__class__.__call__, static_argnames="taps")(vit, images, taps=tuple(meta["taps"]))
        for tap, output in zip(meta["taps"], outputs, strict=True):
            np.testing.assert_allclose(output[:, 0], arrays[f"{key}/tap{tap}/clstoken"], **TOLERANCE)
            np.testing.assert_allclose(output[:, 1:], arrays[f"{key}/tap{tap}/patchtokens"], **TOLERANCE)


@pytest.mark.golden
@pytest.mark.parametrize("rule", PositionRule)
@pytest.mark.parametrize("side", [16, 32])
def test_position_table_of_37_under_both_rules(goldens, rule, side):
    arrays = np.load(goldens / "dinov2_hub" / "pos_tables_37.npz")
    config = ViTConfig(
        image_size=14 * side, patch_size=14, dim=8, depth=1, heads=1, ffn_dim=8, grid=37, position_rule=rule
    )
    vit = ViT(config, rngs=nnx.Rngs(0), dtype=DType.FLOAT32)
    vit.position[...] = jax.numpy.asarray(arrays["table"][0])
    # The hub computes source coordinates in float32 from its scale: 1.3e-5 from a float64 evaluation.
    tolerance = {PositionRule.HUB: 5e-5, PositionRule.HF: 2e-5}[rule]
    np.testing.assert_allclose(vit.positions(side), arrays[f"{rule}/{side}x{side}"][0], atol=tolerance, rtol=0)


def _timm_convnext(weights: dict, config: ConvNeXtConfig) -> dict:
    def patchify(name: str, path: str) -> dict:
        kernel = weights[f"{name}.weight"]
        return {
            f"{path}/kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),
            f"{path}/bias": weights[f"{name}.bias"],
        }

    def norm(name: str, path: str) -> dict:
        return {f"{path}/scale": weights[f"{name}.weight"], f"{path}/bias": weights[f"{name}.bias"]}

    out = patchify("stem.0", "stem/linear") | norm("stem.1", "stem_norm") | norm("head.norm", "norm")
    for stage, depth in enumerate(config.depths):
        prefix, path = f"stages.{stage}.blocks", f"stages/{stage}/blocks"
        if stage:
            out |= norm(f"stages.{stage}.downsample.0", f"stages/{stage}/down_norm")
            out |= patchify(f"stages.{stage}.downsample.1", f"stages/{stage}/down/linear")
        out[f"{path}/dw_kernel"] = _stack(weights, prefix, depth, "conv_dw.weight").transpose(0, 3, 4, 2, 1)
        out[f"{path}/dw_bias"] = _stack(weights, prefix, depth, "conv_dw.bias")
        out[f"{path}/gamma"] = _stack(weights, prefix, depth, "gamma")
        out |= _norm(weights, prefix, depth, "norm", f"{path}/norm")
        for name in ("fc1", "fc2"):
            out |= _linear(weights, prefix, depth, f"mlp.{name}", f"{path}/{name}")
    return out


@pytest.mark.golden
@pytest.mark.parametrize("name", ["a_eps1e-6", "b_eps1e-5"])
def test_convnext_stages_match_timm(goldens, name):
    folder = goldens / "convnext_timm"
    weights = load_file(folder / f"{name}.safetensors")
    meta = json.loads((folder / f"{name}.json").read_text())
    arrays = np.load(folder / f"{name}.npz")
    config = ConvNeXtConfig(
        image_size=64, depths=tuple(meta["depths"]), dims=tuple(meta["dims"]), norm_eps=meta["norm_eps"]
    )
    trunk = _load(ConvNeXt(config, rngs=nnx.Rngs(0), dtype=DType.FLOAT32), _timm_convnext(weights, config))
    for size in {key.split("/")[0] for key in arrays}:
        maps = nnx.jit(trunk.__class__.__call__)(trunk, arrays[f"{size}/input"].transpose(0, 2, 3, 1))
        for got, key in zip(maps, ("stage0", "stage1", "stage2", "head_norm"), strict=True):
            expected = arrays[f"{size}/{key}"].transpose(0, 2, 3, 1)
            np.testing.assert_allclose(got, expected, **TOLERANCE, err_msg=f"{size} {key}")
