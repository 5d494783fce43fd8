"""Fields of the `model` section of a recipe: vision towers, projector, LLM and adapters.

Each class checks its own values in `check`, which returns one message per problem.
"""

from __future__ import annotations

import dataclasses
import enum

ATTENTION_LINEARS = ("q", "k", "v", "o")
LINEARS = (*ATTENTION_LINEARS, "gate", "up", "down")  # of an LLM block


class Mlp(enum.StrEnum):
    """MLP of a ViT block: two linear layers with GELU (DINOv2 S, B, L), or the gated SwiGLU (DINOv2 g)."""

    GELU = "gelu"
    SWIGLU = "swiglu"


class PositionRule(enum.StrEnum):
    """How a ViT's position table is interpolated to another grid: as DINOv2's torch hub code or as transformers."""

    HUB = "hub"
    HF = "hf"


class Fuse(enum.StrEnum):
    """How the feature maps that are taken from one tower are fused.

    concat: along the channels. mean, sum: elementwise. last: the last map alone.
    """

    CONCAT = "concat"
    MEAN = "mean"
    SUM = "sum"
    LAST = "last"


class AdapterKind(enum.StrEnum):
    """Adapter on a linear layer y = W x.

    none: no adapter. bias: y = W x + bias. scale+bias: y = scale * (W x + bias), the paper's. lora: y = W x + B A x.
    """

    NONE = "none"
    BIAS = "bias"
    SCALE_BIAS = "scale+bias"
    LORA = "lora"


class RopeScaling(enum.StrEnum):
    """How RoPE is scaled to sequences longer than those of pretraining, by the names of transformers.

    none: not at all. linear: all positions are divided by a factor. llama3: long wavelengths are stretched by a factor,
    as in Llama 3.1 and later. yarn: the method of arXiv 2309.00071, as in long-context versions of Qwen2.
    """

    NONE = "none"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


class DType(enum.StrEnum):
    """A floating-point type to compute in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


LARGEST_COUNT = 2**24  # of anything that a config counts: tokens, channels, steps, batch rows
LARGEST_IMAGE = 2**13  # side of a model's input in pixels


def expect_positive(config: object, *names: str) -> list[str]:
    """Return one message for each named field that is not positive, or a count above `LARGEST_COUNT`."""
    values = [(name, getattr(config, name)) for name in names]
    return [f"{name}: expected a positive number, got {value}" for name, value in values if value <= 0] + [
        f"{name}: expected at most {LARGEST_COUNT}, got {value}"
        for name, value in values
        if isinstance(value, int) and value > LARGEST_COUNT
    ]


def expect_at_most(config: object, **limits: int) -> list[str]:
    """Return one message for each field that is above its limit. A limit bounds memory, it is no recommendation."""
    return [
        f"{name}: expected at most {limit}, got {getattr(config, name)}"
        for name, limit in limits.items()
        if getattr(config, name) > limit
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The ViT tower, DINOv2.

    Attributes:
        image_size: side of the input, in pixels; the square image is resized to it on the device.
        patch_size: side of a patch, in pixels.
        dim: channels of the residual stream.
        depth: number of blocks.
        heads: number of attention heads.
        ffn_dim: hidden channels of the MLP.
        grid: side of the stored position table, in patches. It is interpolated to the grid of the input.
        mlp: type of the MLP.
        position_rule: how the position table is interpolated.
        norm_eps: epsilon of the LayerNorms.
    """

    image_size: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    ffn_dim: int
    grid: int
    mlp: Mlp = Mlp.GELU
    position_rule: PositionRule = PositionRule.HUB
    norm_eps: float = 1e-6

    @property
    def tokens_per_side(self) -> int:
        """Side of the grid of patches."""
        return self.image_size // self.patch_size

    def check(self) -> list[str]:
        errors = expect_positive(self, "image_size", "patch_size", "dim", "depth", "heads", "ffn_dim", "grid")
        errors += expect_at_most(self, image_size=LARGEST_IMAGE)
        if not errors and self.dim % self.heads:
            errors.append(f"heads: expected a divisor of dim={self.dim}, got {self.heads}")
        if not errors and self.image_size % self.patch_size:
            errors.append(f"image_size: expected a multiple of patch_size={self.patch_size}, got {self.image_size}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """The CNN tower, a ConvNeXt trunk with four stages of strides 4, 8, 16 and 32.

    Attributes:
        image_size: side of the input, in pixels; the square image is resized to it on the device.
        depths: number of blocks of each stage.
        dims: channels of each stage.
        norm_eps: epsilon of the LayerNorms.
    """

    image_size: int
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    norm_eps: float = 1e-6

    def check(self) -> list[str]:
        errors = expect_positive(self, "image_size") + expect_at_most(self, image_size=LARGEST_IMAGE)
        if len(self.depths) != 4 or len(self.dims) != 4:
            errors.append(f"depths, dims: expected four stages, got {len(self.depths)} and {len(self.dims)}")
        elif not all(0 < count <= LARGEST_COUNT for count in self.depths + self.dims):
            errors.append(
                f"depths, dims: expected positive numbers of at most {LARGEST_COUNT}, got {self.depths} and {self.dims}"
            )
        if self.image_size % 32:
            errors.append(f"image_size: expected a multiple of the trunk's stride 32, got {self.image_size}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptionConfig:
    """Visual-enhanced perception: which feature maps of the two towers become visual tokens.

    Attributes:
        vit_layers: 0-based indices of the ViT blocks whose outputs are taken, increasing.
        cnn_stages: 0-based indices of the CNN stages whose outputs are taken, increasing.
        vit_fuse: how the ViT's outputs are fused: concat, mean or last.
        cnn_fuse: how the CNN's outputs are fused: concat, sum or last.
        spatial_merge: side of the squares of neighbouring patches that become one visual token; their features are
            concatenated along the channels, so nothing is averaged away. 1: every patch is a token, as in the paper.
    """

    vit_layers: tuple[int, ...]
    cnn_stages: tuple[int, ...]
    vit_fuse: Fuse = Fuse.CONCAT
    cnn_fuse: Fuse = Fuse.CONCAT
    spatial_merge: int = 1

    def check(self) -> list[str]:
        errors = expect_positive(self, "spatial_merge")
        if self.vit_fuse not in (Fuse.CONCAT, Fuse.MEAN, Fuse.LAST):
            errors.append(f"vit_fuse: expected concat, mean or last, got {self.vit_fuse}")
        if self.cnn_fuse not in (Fuse.CONCAT, Fuse.SUM, Fuse.LAST):
            errors.append(f"cnn_fuse: expected concat, sum or last, got {self.cnn_fuse}")
        for name, indices in (("vit_layers", self.vit_layers), ("cnn_stages", self.cnn_stages)):
            if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0:
                errors.append(f"{name}: expected increasing indices, the first at least 0, got {indices}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
    """Scaling of the rotary position embedding.

    Attributes:
        kind: the method.
        factor: wavelengths are multiplied by this number; which ones depends on the method.
        original_positions: llama3, yarn: context length of pretraining, in tokens.
        low_freq_factor: llama3: wavelengths above `original_positions / low_freq_factor` are stretched fully.
        high_freq_factor: llama3: wavelengths below `original_positions / high_freq_factor` are not stretched.
        beta_fast: yarn: channels that rotate more often than this in `original_positions` are not stretched.
        beta_slow: yarn: channels that rotate less often than this are stretched fully.
        attention_factor: yarn: queries and keys are multiplied by this number; 0: 0.1 ln(factor) + 1.
    """

    kind: RopeScaling = RopeScaling.NONE
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0

    def check(self) -> list[str]:
        errors = expect_positive(self, "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        if self.kind in (RopeScaling.LLAMA3, RopeScaling.YARN):
            errors += expect_positive(self, "original_positions")
        if self.high_freq_factor <= self.low_freq_factor:
            errors.append(
                f"high_freq_factor: expected more than low_freq_factor={self.low_freq_factor}, "
                f"got {self.high_freq_factor}"
            )
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The LLM, of the LLaMA family.

    Attributes:
        vocab_size: number of token ids, which is the number of rows of the embedding.
        tokenizer_size: number of token ids of the tokenizer; 0: `vocab_size`. It is smaller where the vocabulary is
            padded, as in Qwen2.
        dim: channels of the residual stream.
        depth: number of blocks.
        heads: number of query heads.
        kv_heads: number of key and value heads; fewer than `heads` is grouped-query attention.
        head_size: channels of one head; 0: `dim / heads`.
        ffn_dim: hidden channels of the MLP.
        norm_eps: epsilon of the RMSNorms.
        rope_theta: base of the rotary position embedding's wavelengths.
        rope_scaling: how these are scaled; not at all by default.
        max_positions: longest sequence that the LLM was made for, in tokens. Exports record it.
        tied_head: whether the output head shares the embedding's weights.
        attention_bias: whether q, k, v and o have biases.
        qkv_bias: whether q, k and v have biases, even if o has none, as in Qwen2.
        mlp_bias: whether the MLP's linear layers have biases.
    """

    vocab_size: int
    dim: int
    depth: int
    heads: int
    kv_heads: int
    ffn_dim: int
    head_size: int = 0
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    max_positions: int = 4096
    tied_head: bool = False
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    tokenizer_size: int = 0

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.head_size or self.dim // self.heads

    def has_bias(self, linear: str) -> bool:
        """Return whether a linear layer of the blocks, one of `LINEARS`, has a bias."""
        if linear not in ATTENTION_LINEARS:
            return self.mlp_bias
        return self.attention_bias or (self.qkv_bias and linear != "o")

    def check(self) -> list[str]:
        errors = expect_positive(
            self, "vocab_size", "dim", "depth", "heads", "kv_heads", "ffn_dim", "rope_theta", "max_positions"
        )
        if not 0 <= self.tokenizer_size <= self.vocab_size:
            errors.append(
                f"tokenizer_size: expected at most vocab_size={self.vocab_size}, or 0 for all of it, "
                f"got {self.tokenizer_size}"
            )
        if self.head_size < 0:
            errors.append(f"head_size: expected a positive number, or 0 for dim / heads, got {self.head_size}")
        if not errors and not self.head_size and self.dim % self.heads:
            errors.append(f"heads: expected a divisor of dim={self.dim}, got {self.heads}; or give head_size")
        if not errors and self.heads % self.kv_heads:
            errors.append(f"kv_heads: expected a divisor of heads={self.heads}, got {self.kv_heads}")
        if not errors and self.head_dim % 2:
            errors.append(f"head_size: expected an even head size for RoPE, got {self.head_dim}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Adapters on the linear layers of the LLM.

    Attributes:
        kind: type of the adapters.
        targets: which of `LINEARS` have one, in every block; all by default.
        rank: rank of LoRA's product B A.
        alpha: LoRA's product is multiplied by alpha / rank; 0 multiplies it by one, as LLaMA2-Accessory does.
    """

    kind: AdapterKind = AdapterKind.NONE
    targets: tuple[str, ...] = LINEARS
    rank: int = 16
    alpha: float = 0.0

    @property
    def factor(self) -> float:
        """The number that LoRA's product is multiplied by."""
        return self.alpha / self.rank if self.alpha else 1.0

    def check(self) -> list[str]:
        unknown = [target for target in self.targets if target not in LINEARS]
        errors = [f"targets: expected some of {LINEARS}, got {unknown}"] if unknown else []
        if not self.targets and self.kind is not AdapterKind.NONE:
            errors.append(f"targets: expected some of {LINEARS}, got none")
        if self.alpha < 0:
            errors.append(f"alpha: expected a positive number, or 0 for no scaling, got {self.alpha}")
        return errors + expect_positive(self, "rank")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole model.

    Attributes:
        image_size: side of the uint8 image that is sent to the device, in pixels; each tower resizes it.
        vit: the ViT tower.
        convnext: the CNN tower.
        perception: which of their feature maps are used.
        llm: the language model.
        adapter: adapters on its linear layers; none by default.
        compute_dtype: type of activations and matrix products. Norms, softmax, angles and loss are always float32.
    """

    image_size: int
    vit: ViTConfig
    convnext: ConvNeXtConfig
    perception: PerceptionConfig
    llm: LlamaConfig
    adapter: AdapterConfig = AdapterConfig()
    compute_dtype: DType = DType.BFLOAT16

    @property
    def visual_tokens(self) -> int:
        """P, the visual tokens per image: one CLS token and the ViT's grid, after the merging of neighbours."""
        return 1 + (self.vit.tokens_per_side // self.perception.spatial_merge) ** 2

    def check(self) -> list[str]:
        errors = expect_positive(self, "image_size") + expect_at_most(self, image_size=LARGEST_IMAGE)
        if self.perception.vit_layers and max(self.perception.vit_layers) >= self.vit.depth:
            errors.append(
                f"perception.vit_layers: expected indices below vit.depth={self.vit.depth}, "
                f"got {self.perception.vit_layers}"
            )
        if self.perception.cnn_stages and max(self.perception.cnn_stages) > 3:
            errors.append(f"perception.cnn_stages: expected indices 0..3, got {self.perception.cnn_stages}")
        grid = self.vit.tokens_per_side
        if not errors and grid % self.perception.spatial_merge:
            errors.append(
                f"perception.spatial_merge: expected a divisor of the ViT's grid of {grid}, "
                f"got {self.perception.spatial_merge}"
            )
        for stage in self.perception.cnn_stages:
            side = self.convnext.image_size // (4 * 2**stage)
            if side and max(side, grid) % min(side, grid):
                errors.append(
                    f"perception.cnn_stages: stage {stage} has a {side}x{side} map, which neither divides "
                    f"nor is divided by the ViT's {grid}x{grid} grid"
                )
        return errors
