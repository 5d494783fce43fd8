"""DINOv2 and ConvNeXt against arrays computed by the upstream PyTorch codes, fp32, within 1e-5 (measured: 7e-6 at
most; upstream's own distance to float64 is about 5e-6)."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from earthgpt_jax.config import ConvNeXtConfig, DType, Mlp, PositionRule, ViTConfig
from earthgpt_jax.convert.tables import convnext_timm, dinov2_hub
from earthgpt_jax.models.convnext import ConvNeXt
from earthgpt_jax.models.vit import ViT
from tests.support.weights import load_into

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


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
        module = ViT(config, rngs=nnx.Rngs(0), dtype=DType.FLOAT32)
        vit = load_into(module, goldens / "dinov2_hub" / f"{name}.safetensors", dinov2_hub(config))
        key = f"{height}x{width}"
        images = arrays[f"{key}/input"].transpose(0, 2, 3, 1)
        outputs = nnx.jit(vit.__class__.__call__, static_argnames="taps")(vit, images, taps=tuple(meta["taps"]))
        for tap, output in zip(meta["taps"], outputs, strict=True):
            np.testing.assert_allclose(output[:, 0], arrays[f"{key}/tap{tap}/clstoken"], **TOLERANCE)
            np.testing.assert_allclose(output[:, 1:], arrays[f"{key}/tap{tap}/patchtokens"], **TOLERANCE)


@pytest.mark.golden
@pytest.mark.parametrize("rule", PositionRule)
@pytest.mark.parametrize("side", [16, 32])
def test_position_embeddings_of_grid_37_with_both_rules(goldens, rule, side):
    arrays = np.load(goldens / "dinov2_hub" / "pos_tables_37.npz")
    config = ViTConfig(
        image_size=14 * side, patch_size=14, dim=8, depth=1, heads=1, ffn_dim=8, grid=37, position_rule=rule
    )
    vit = ViT(config, rngs=nnx.Rngs(0), dtype=DType.FLOAT32)
    vit.position[...] = jax.numpy.asarray(arrays["table"][0])
    # The hub computes source coordinates in float32 from its scale: 1.3e-5 from a float64 evaluation.
    tolerance = {PositionRule.HUB: 5e-5, PositionRule.HF: 2e-5}[rule]
    np.testing.assert_allclose(vit.positions(side), arrays[f"{rule}/{side}x{side}"][0], atol=tolerance, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["a_eps1e-6", "b_eps1e-5"])
def test_convnext_stages_match_timm(goldens, name):
    folder = goldens / "convnext_timm"
    meta = json.loads((folder / f"{name}.json").read_text())
    arrays = np.load(folder / f"{name}.npz")
    config = ConvNeXtConfig(
        image_size=64, depths=tuple(meta["depths"]), dims=tuple(meta["dims"]), norm_eps=meta["norm_eps"]
    )
    module = ConvNeXt(config, rngs=nnx.Rngs(0), dtype=DType.FLOAT32)
    trunk = load_into(module, folder / f"{name}.safetensors", convnext_timm(config))
    for size in {key.split("/")[0] for key in arrays}:
        maps = nnx.jit(trunk.__class__.__call__)(trunk, arrays[f"{size}/input"].transpose(0, 2, 3, 1))
        for got, key in zip(maps, ("stage0", "stage1", "stage2", "head_norm"), strict=True):
            expected = arrays[f"{size}/{key}"].transpose(0, 2, 3, 1)
            np.testing.assert_allclose(got, expected, **TOLERANCE, err_msg=f"{size} {key}")
