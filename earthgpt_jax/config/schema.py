"""The fields of a recipe as frozen dataclasses, each of which checks its own values."""

from __future__ import annotations

import dataclasses
import enum


class Mlp(enum.StrEnum):
    GELU = "gelu"
    SWIGLU = "swiglu"


class PositionRule(enum.StrEnum):
    """How a ViT position table is brought to another grid: the DINOv2 hub code's or transformers' way."""

    HUB = "hub"
    HF = "hf"


class Fuse(enum.StrEnum):
    CONCAT = "concat"
    MEAN = "mean"
    SUM = "sum"
    LAST = "last"


class AdapterKind(enum.StrEnum):
    NONE = "none"
    BIAS = "bias"
    SCALE_BIAS = "scale+bias"
    LORA = "lora"


class Stage(enum.StrEnum):
    """The paper's two stages, and full fine-tuning: everything behind the encoders."""

    ALIGN = "align"
    INSTRUCT = "instruct"
    FINETUNE = "finetune"


class TrainableAttention(enum.StrEnum):
    """Which attention kernels `align` trains: the paper's label says all, its figure shows q, k, v."""

    QKVO = "qkvo"
    QKV = "qkv"


class QuestionContext(enum.StrEnum):
    """Whether the questions about an image see the image and themselves only, or as a dialogue those before them."""

    INDEPENDENT = "independent"
    DIALOGUE = "dialogue"


class OnDamaged(enum.StrEnum):
    """What training does about a record or an image that cannot be read."""

    REFUSE = "refuse"
    SKIP = "skip"


class Augment(enum.StrEnum):
    """Which symmetries of the square training draws from, an image at a time."""

    NONE = "none"
    FLIPS = "flips"
    FLIPS_AND_ROTATIONS = "flips+rotations"


class DType(enum.StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class FrozenDType(enum.StrEnum):
    """Of weights that a stage does not train; int8: the LLM's kernels, with a scale a channel, the rest bfloat16."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class Remat(enum.StrEnum):
    """What a block's forward pass keeps for its backward pass; the rest is computed again.

    none: JAX's own choice, everything that any gradient reads. minimal: the outputs of the seven linears and of
    attention, so that no matrix product is done twice. attention: the same without gate and up. full: a
    block's input alone. offload: what `attention` keeps, in the host's memory.
    """

    NONE = "none"
    MINIMAL = "minimal"
    ATTENTION = "attention"
    FULL = "full"
    OFFLOAD = "offload"


class OnNan(enum.StrEnum):
    """What a run does about a loss or a gradient that is not finite; its update is applied in neither case."""

    STOP = "stop"
    SKIP = "skip"


class OnSpike(enum.StrEnum):
    """What a run does about a step whose loss or gradient norm is far above those before it."""

    KEEP = "keep"
    SKIP = "skip"


class AttentionImpl(enum.StrEnum):
    """What computes attention; `auto`: splash on TPUs, cuDNN on GPUs in bfloat16, XLA elsewhere."""

    AUTO = "auto"
    XLA = "xla"
    SPLASH = "splash"
    CUDNN = "cudnn"


LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def _positive(config: object, *names: str) -> list[str]:
    return [
        f"{name}: expected a positive number, got {getattr(config, name)}"
        for name in names
        if getattr(config, name) <= 0
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """DINOv2. `grid` is the side of the stored position table, which is resized to the image's grid."""

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
        return self.image_size // self.patch_size

    def check(self) -> list[str]:
        errors = _positive(self, "image_size", "patch_size", "dim", "depth", "heads", "ffn_dim", "grid")
        if not errors and self.dim % self.heads:
            errors.append(f"heads: expected a divisor of dim={self.dim}, got {self.heads}")
        if not errors and self.image_size % self.patch_size:
            errors.append(f"image_size: expected a multiple of patch_size={self.patch_size}, got {self.image_size}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    image_size: int
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    norm_eps: float = 1e-6

    def check(self) -> list[str]:
        errors = _positive(self, "image_size")
        if len(self.depths) != 4 or len(self.dims) != 4:
            errors.append(f"depths, dims: expected four stages, got {len(self.depths)} and {len(self.dims)}")
        elif min(self.depths + self.dims) <= 0:
            errors.append(f"depths, dims: expected positive numbers, got {self.depths} and {self.dims}")
        if self.image_size % 32:
            errors.append(f"image_size: expected a multiple of the trunk's stride 32, got {self.image_size}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptionConfig:
    """Visual-enhanced perception: which ViT layers and CNN stages (0-based), and how each set is fused."""

    vit_layers: tuple[int, ...]
    cnn_stages: tuple[int, ...]
    vit_fuse: Fuse = Fuse.CONCAT
    cnn_fuse: Fuse = Fuse.CONCAT

    def check(self) -> list[str]:
        errors = []
        if self.vit_fuse not in (Fuse.CONCAT, Fuse.MEAN, Fuse.LAST):
            errors.append(f"vit_fuse: expected concat, mean or last, got {self.vit_fuse}")
        if self.cnn_fuse not in (Fuse.CONCAT, Fuse.SUM, Fuse.LAST):
            errors.append(f"cnn_fuse: expected concat, sum or last, got {self.cnn_fuse}")
        for name, taps in (("vit_layers", self.vit_layers), ("cnn_stages", self.cnn_stages)):
            if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0:
                errors.append(f"{name}: expected increasing indices from 0 on, got {taps}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    vocab_size: int
    dim: int
    depth: int
    heads: int
    kv_heads: int
    ffn_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tied_head: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def check(self) -> list[str]:
        errors = _positive(self, "vocab_size", "dim", "depth", "heads", "kv_heads", "ffn_dim", "rope_theta")
        if not errors and self.dim % self.heads:
            errors.append(f"heads: expected a divisor of dim={self.dim}, got {self.heads}")
        if not errors and self.heads % self.kv_heads:
            errors.append(f"kv_heads: expected a divisor of heads={self.heads}, got {self.kv_heads}")
        if not errors and self.head_dim % 2:
            errors.append(f"dim/heads: expected an even head size for RoPE, got {self.head_dim}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What sits on the LLM's linears.

    Attributes:
        rank, alpha: of LoRA, whose product is multiplied by alpha / rank; alpha 0: by one, as in LLaMA2-Accessory.
    """

    kind: AdapterKind = AdapterKind.NONE
    targets: tuple[str, ...] = LINEARS
    rank: int = 16
    alpha: float = 0.0

    @property
    def factor(self) -> float:
        """What LoRA's product is multiplied by."""
        return self.alpha / self.rank if self.alpha else 1.0

    def check(self) -> list[str]:
        unknown = [target for target in self.targets if target not in LINEARS]
        errors = [f"targets: expected some of {LINEARS}, got {unknown}"] if unknown else []
        if not self.targets and self.kind is not AdapterKind.NONE:
            errors.append(f"targets: expected some of {LINEARS}, got none")
        if self.alpha < 0:
            errors.append(f"alpha: expected a positive number, or 0 for no scaling, got {self.alpha}")
        return errors + _positive(self, "rank")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """EarthGPT. `image_size` is the side of the uint8 square that reaches the device."""

    image_size: int
    vit: ViTConfig
    convnext: ConvNeXtConfig
    perception: PerceptionConfig
    llm: LlamaConfig
    adapter: AdapterConfig = AdapterConfig()
    compute_dtype: DType = DType.BFLOAT16

    @property
    def visual_tokens(self) -> int:
        """P: one CLS and the ViT's grid."""
        return 1 + self.vit.tokens_per_side**2

    def check(self) -> list[str]:
        errors = _positive(self, "image_size")
        if self.perception.vit_layers and max(self.perception.vit_layers) >= self.vit.depth:
            errors.append(
                f"perception.vit_layers: expected indices below vit.depth={self.vit.depth}, "
                f"got {self.perception.vit_layers}"
            )
        if self.perception.cnn_stages and max(self.perception.cnn_stages) > 3:
            errors.append(f"perception.cnn_stages: expected indices 0..3, got {self.perception.cnn_stages}")
        grid = self.vit.tokens_per_side
        for stage in self.perception.cnn_stages:
            side = self.convnext.image_size // (4 * 2**stage)
            if side and max(side, grid) % min(side, grid):
                errors.append(
                    f"perception.cnn_stages: stage {stage} has a {side}x{side} map, which neither divides "
                    f"nor is divided by the ViT's {grid}x{grid} grid"
                )
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how it is asked.

    Attributes:
        source: a directory made by `earthgpt data build`, or a folder of them; `synthetic` for a few synthetic records
            that the run draws for itself, to debug.
        mixture: which datasets of a folder are trained on, and how often: a name from `data/mixtures`, or a file;
            "": whatever is there, each once an epoch.
        seq_len: T.
        batch_size: rows a step, of all hosts together.
        max_images: at most; 0: as many as a row has room for.
        max_questions: about one image in a row, at most; it occurs in further rows with the others.
        turns: whether questions about an image are independent of each other or a dialogue.
        task_weights: kind -> how often each question of it is asked an epoch: 1 once, 2 twice, 0.5 every other
            epoch. Kinds are the seven tasks, for `align` `grounded_caption` and `grounded_caption_obb`, and those
            derived from boxes (`input.prompts.derived`).
        decimals: of box coordinates, as fractions of the padded square.
        max_boxes: most boxes that a detection answer lists, the largest; the others are counted in words.
            0: all are listed.
        augment: `flips` (left-right, up-down, both) or `flips+rotations` (all eight symmetries of the square), drawn
            for every sample, boxes included; a sample whose text speaks of a direction stays as it is.
        on_damaged: what happens about records and images that cannot be read.
        workers: processes of each host that make rows; 0: threads of the training process. Changes no batch.
    """

    source: str
    split: str = "train"
    mixture: str = ""
    seq_len: int = 2048
    batch_size: int = 128
    max_images: int = 0
    max_questions: int = 1
    question_context: QuestionContext = QuestionContext.INDEPENDENT
    task_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    decimals: int = 3
    max_boxes: int = 0
    chat_template: str = "v1"
    augment: Augment = Augment.NONE
    on_damaged: OnDamaged = OnDamaged.REFUSE
    workers: int = 0

    def check(self) -> list[str]:
        errors = _positive(self, "seq_len", "batch_size", "max_questions")
        errors += [
            f"{name}: expected a number of {what}, or 0, got {getattr(self, name)}"
            for name, what in (("max_images", "images"), ("workers", "processes"))
            if getattr(self, name) < 0
        ]
        if not 1 <= self.decimals <= 4:
            errors.append(f"decimals: expected 1..4, got {self.decimals}")
        if self.max_boxes < 0:
            errors.append(f"max_boxes: expected a number of boxes, or 0 for all, got {self.max_boxes}")
        if self.max_images < 0:
            errors.append(f"max_images: expected a number of images, or 0 for all with room, got {self.max_images}")
        if not self.task_weights:
            errors.append("task_weights: expected at least one kind of question, got none")
        if any(weight < 0 for weight in self.task_weights.values()):
            errors.append(f"task_weights: expected weights >= 0, got {self.task_weights}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, linear warm-up, half-cosine to `min_lr`. `lr_scale` multiplies the rate of a group of paths.

    Attributes:
        on_nan: where the loss or a gradient is not finite: stop there, or leave the batch out.
        on_spike: where loss or gradient norm stand `spike_factor` robust deviations above the median of the last
            128 updates: apply the update all the same (and say so in metrics.jsonl), or leave the batch out.
        max_skips: so many batches left out in a row end the run.
    """

    steps: int
    peak_lr: float = 2e-5
    min_lr: float = 0.0
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 8.0
    microbatches: int = 1
    lr_scale: dict[str, float] = dataclasses.field(default_factory=dict)
    on_nan: OnNan = OnNan.STOP
    on_spike: OnSpike = OnSpike.KEEP
    spike_factor: float = 8.0
    max_skips: int = 10

    def check(self) -> list[str]:
        errors = _positive(
            self, "steps", "peak_lr", "clip_norm", "microbatches", "spike_factor", "max_skips"
        )  # fmt: skip
        if not 0 <= self.warmup_steps <= self.steps:
            errors.append(f"warmup_steps: expected 0..steps={self.steps}, got {self.warmup_steps}")
        if not 0 <= self.min_lr <= self.peak_lr:
            errors.append(f"min_lr: expected 0..peak_lr={self.peak_lr}, got {self.min_lr}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves, and what of it stays.

    Attributes:
        every_steps: between checkpoints; the last step is saved as well, and the one at which a run is told to stop.
        keep: so many of the newest.
        keep_every_steps: those of multiples of this stay for good; 0: none.
        keep_every_hours: the first stays for good, and so does the first that is so much newer than the last that
            stayed; 0: none.
    """

    every_steps: int = 500
    keep: int = 2
    keep_every_steps: int = 0
    keep_every_hours: float = 0.0

    def check(self) -> list[str]:
        errors = _positive(self, "every_steps", "keep")
        if self.keep_every_steps < 0 or (not errors and self.keep_every_steps % self.every_steps):
            errors.append(
                f"keep_every_steps: expected a multiple of every_steps={self.every_steps}, or 0, "
                f"got {self.keep_every_steps}"
            )
        if self.keep_every_hours < 0:
            errors.append(f"keep_every_hours: expected hours, or 0, got {self.keep_every_hours}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """A process that finishes no step for so many minutes says where it stands and ends (status 75); 0: never."""

    minutes: float = 30.0

    def check(self) -> list[str]:
        return [] if self.minutes >= 0 else [f"minutes: expected a number of minutes, or 0, got {self.minutes}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; -1 (one of `data` and `fsdp`): all that the others leave.

    Attributes:
        data: rows of the batch; several slices lie along it.
        fsdp: rows too, and every large weight in slices, gathered when needed.
        tensor: heads, ffn channels and the vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def check(self) -> list[str]:
        errors = [
            f"{name}: expected a positive number or -1, got {size}"
            for name, size in (("data", self.data), ("fsdp", self.fsdp))
            if size < 1 and size != -1
        ]
        if self.data == self.fsdp == -1:
            errors.append("data, fsdp: expected -1 at one of them at most, got -1 at both")
        return errors + _positive(self, "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One training run.

    Attributes:
        init: the model it starts from: an embedded name (`tiny-base`, `tiny`) or a model directory; `random` for
            random weights and the embedded tokenizer, to debug and to measure.
        init_from: instead of `init`, a foreign checkpoint each for `vit`, `convnext` and `llm` (and `projector`),
            or `model` for a whole one; what `earthgpt convert import` reads.
        frozen_dtype: of weights that this stage does not train.
        mesh, remat, attention: how the devices share the work and what computes it; a run may resume with others.
    """

    recipe: str
    stage: Stage
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    init: str = ""
    init_from: dict[str, str] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = CheckpointConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    trainable_attention: TrainableAttention = TrainableAttention.QKVO
    frozen_dtype: FrozenDType = FrozenDType.BFLOAT16
    mesh: MeshConfig = MeshConfig()
    remat: Remat = Remat.NONE
    attention_impl: AttentionImpl = AttentionImpl.AUTO
    seed: int = 0
    log_every: int = 10

    def check(self) -> list[str]:
        errors = _positive(self, "log_every")
        if bool(self.init) == bool(self.init_from):
            errors.append(f"init, init_from: expected one of them, got {self.init!r} and {self.init_from}")
        has_adapter = self.model.adapter.kind is not AdapterKind.NONE
        if has_adapter != (self.stage is Stage.INSTRUCT):
            wanted = "an adapter" if self.stage is Stage.INSTRUCT else "none"
            errors.append(f"model.adapter.kind: stage {self.stage} expects {wanted}, got {self.model.adapter.kind}")
        if self.data.batch_size % self.optim.microbatches:
            errors.append(
                f"optim.microbatches: expected a divisor of data.batch_size={self.data.batch_size}, "
                f"got {self.optim.microbatches}"
            )
        for name, heads in (("heads", self.model.llm.heads), ("kv_heads", self.model.llm.kv_heads)):
            if heads % self.mesh.tensor:
                errors.append(f"mesh.tensor: expected a divisor of model.llm.{name}={heads}, got {self.mesh.tensor}")
        if self.data.seq_len < self.model.visual_tokens + 16:
            errors.append(
                f"data.seq_len: expected room for {self.model.visual_tokens + 3} image slots and text, "
                f"got {self.data.seq_len}"
            )
        return errors
