"""Fields of a recipe as frozen dataclasses: data, optimiser, checkpoints, mesh, and `Config`, which holds them all.

Each class checks its own values in `check`, which returns one message per problem.
"""

from __future__ import annotations

import dataclasses
import enum
import re

from earthgpt_jax.config.model_schema import AdapterKind, ModelConfig, expect_at_most, expect_positive
from earthgpt_jax.config.remat import Remat, policy_errors

LARGEST_LR = 100.0  # AdamW moves a weight by about the learning rate in each step


class Stage(enum.StrEnum):
    """What is trained: see `training/stages.py`.

    align, instruct: the paper's two stages. finetune: everything except the vision towers.
    """

    ALIGN = "align"
    INSTRUCT = "instruct"
    FINETUNE = "finetune"


class TrainableAttention(enum.StrEnum):
    """Which attention kernels `align` trains. The paper's text says all four; its figure shows q, k and v."""

    QKVO = "qkvo"
    QKV = "qkv"


class QuestionContext(enum.StrEnum):
    """What a question about an image sees: only the image, or also the questions and answers before it."""

    INDEPENDENT = "independent"
    DIALOGUE = "dialogue"


class OnDamaged(enum.StrEnum):
    """What to do with a record or image that cannot be read: end the run, or skip it."""

    REFUSE = "refuse"
    SKIP = "skip"


class Augment(enum.StrEnum):
    """Symmetries of the square that an image is transformed by, drawn at random per sample, its boxes included.

    flips: left-right, up-down or both. flips+rotations: all eight, that is, rotations by multiples of 90 degrees too.
    """

    NONE = "none"
    FLIPS = "flips"
    FLIPS_AND_ROTATIONS = "flips+rotations"


class FrozenDType(enum.StrEnum):
    """Storage of parameters that a stage does not train.

    int8: the LLM's kernels as int8 with one scale per output channel, all others as bfloat16.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class ModelContents(enum.StrEnum):
    """What the finished model of stage `instruct` holds, in `WORKDIR/model`; other stages write whole models.

    adapters: the adapters alone, and a reference to `init`, which has all other parameters. whole: all parameters.
    """

    ADAPTERS = "adapters"
    WHOLE = "whole"


class OnNan(enum.StrEnum):
    """What to do if the loss or a gradient is not finite: end the run, or skip the batch. No update is applied."""

    STOP = "stop"
    SKIP = "skip"


class OnSpike(enum.StrEnum):
    """What to do if the loss or the gradient norm is far above recent ones: apply the update, or skip the batch."""

    KEEP = "keep"
    SKIP = "skip"


class AttentionImpl(enum.StrEnum):
    """Attention kernel. auto: splash attention on TPUs, cuDNN on GPUs in bfloat16, XLA otherwise."""

    AUTO = "auto"
    XLA = "xla"
    SPLASH = "splash"
    CUDNN = "cudnn"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data, and how it is turned into packed sequences of questions and answers.

    Attributes:
        source: dataset directory that `earthgpt data build` wrote, or a folder of such directories; `synthetic`: a few
            synthetic records that the run generates, for debugging.
        split: split of the datasets to train on.
        mixture: which datasets of the folder are used and how often: a name from `data/mixtures` or a YAML file.
            The default, "", uses each dataset once per epoch.
        seq_len: T, tokens per packed sequence.
        batch_size: packed sequences per optimiser step, over all hosts.
        max_images: maximum number of images per packed sequence; 0: as many as fit.
        max_questions: maximum number of questions about one image in a packed sequence. An image with more questions
            occurs in several sequences.
        question_context: whether the questions about an image are independent or form a dialogue.
        task_weights: how often each question of a task is used per epoch: 1 once, 2 twice, 0.5 every other epoch.
            Tasks are the seven of `records.Task`; `grounded_caption` and `grounded_caption_obb` for stage `align`;
            and those derived from boxes (`input.prompts.derived`). At least one is required.
        decimals: decimals of box coordinates in text, as fractions of the padded square.
        max_boxes: maximum number of boxes listed in a detection answer. The largest are listed; the others are given
            as a count. 0: no limit.
        json_share: share of the questions about boxes that ask for JSON (`data/templates/json.yaml`), 0..1.
        chat_template: name of the chat template: `v1_eos`, with SPHINX's system prompt, or `plain_eos`, without. Their
            answers end with the EOS token. In `v1` and `plain` they end with the characters `\\n###`, as in
            LLaMA2-Accessory.
        augment: augmentation by flips and rotations; none by default. Samples whose text mentions a direction are
            not augmented.
        on_damaged: what to do with records and images that cannot be read.
        features: folder in which the features of the frozen encoders are kept, so that they are computed once and not
            in every epoch; they take (patches + 1) * channels * 2 bytes per image. "": encoders run in every step.
        workers: processes per host that prepare batches; 0: threads of the training process. Batches do not depend
            on it.
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
    json_share: float = 0.0
    chat_template: str = "v1_eos"
    augment: Augment = Augment.NONE
    on_damaged: OnDamaged = OnDamaged.REFUSE
    features: str = ""
    workers: int = 0

    def check(self) -> list[str]:
        errors = expect_positive(self, "seq_len", "batch_size", "max_questions")
        errors += expect_at_most(self, seq_len=2**20, max_images=2**12, max_boxes=2**20, workers=2**10)
        errors += [
            f"{name}: expected a number of {unit}, or 0 for {zero}, got {getattr(self, name)}"
            for name, unit, zero in (
                ("max_images", "images", "as many as fit"),
                ("max_boxes", "boxes", "no limit"),
                ("workers", "processes", "threads"),
            )
            if getattr(self, name) < 0
        ]
        if self.features and self.augment is not Augment.NONE:
            errors.append(f"features: expected no augmentation, because features are stored once, got {self.augment}")
        if not 1 <= self.decimals <= 4:
            errors.append(f"decimals: expected 1..4, got {self.decimals}")
        if not 0 <= self.json_share <= 1:
            errors.append(f"json_share: expected 0..1, got {self.json_share}")
        if not self.task_weights:
            errors.append("task_weights: expected at least one task, got none")
        if any(weight < 0 for weight in self.task_weights.values()):
            errors.append(f"task_weights: expected weights >= 0, got {self.task_weights}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and half-cosine decay.

    Attributes:
        steps: number of optimiser steps of the run.
        peak_lr: learning rate after warm-up.
        min_lr: learning rate at the last step.
        warmup_steps: steps of linear warm-up; 0: none.
        b1, b2: decay rates of Adam's first and second moment.
        eps: Adam's epsilon.
        weight_decay: decoupled weight decay, of the parameters that `training/stages.py` marks.
        clip_norm: maximum global norm of the trainable parameters' gradients.
        microbatches: number of equal parts that a batch is split into; their gradients are accumulated.
        lr_scale: factor on the learning rate, by parameter group of `training/stages.py`; 1 for groups not named.
        on_nan: what to do if the loss or a gradient is not finite.
        on_spike: what to do if the loss or the gradient norm is more than `spike_factor` robust standard deviations
            above the median of the last 128 updates. Either way metrics.jsonl records the spike.
        spike_factor: threshold of a spike, in robust standard deviations.
        max_skips: number of consecutive skipped batches that ends the run.
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
        errors = expect_positive(
            self, "steps", "peak_lr", "clip_norm", "microbatches", "spike_factor", "max_skips"
        )  # fmt: skip
        errors += [
            f"{name}: expected {limits}, got {getattr(self, name)}"
            for name, limits, valid in (
                ("b1", "at least 0 and below 1", 0 <= self.b1 < 1),
                ("b2", "at least 0 and below 1", 0 <= self.b2 < 1),
                ("eps", "a number above 0 and below 1", 0 < self.eps < 1),
                ("weight_decay", "0..1000", 0 <= self.weight_decay <= 1000),
                ("peak_lr", f"at most {LARGEST_LR}", self.peak_lr <= LARGEST_LR),
            )
            if not valid
        ]
        if not 0 <= self.warmup_steps <= self.steps:
            errors.append(f"warmup_steps: expected 0..steps={self.steps}, got {self.warmup_steps}")
        if not 0 <= self.min_lr <= self.peak_lr:
            errors.append(f"min_lr: expected 0..peak_lr={self.peak_lr}, got {self.min_lr}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, which are retained, and what the finished model holds.

    Attributes:
        every_steps: steps between checkpoints. The last step, and the step at which a run is preempted, are also
            saved.
        keep: number of most recent checkpoints to retain.
        keep_every_steps: retain the checkpoints of steps that are multiples of this number permanently; 0: none.
        keep_every_hours: retain permanently the first checkpoint, and then each that is at least this many hours newer
            than the last one retained for this reason; 0: none.
        keep_best: a figure of validation, for example `validation/loss` or `validation/caption/accuracy`: retain the
            checkpoint with the lowest loss, or the highest other figure, in addition, and make it the finished model;
            "": the finished model is that of the last step.
        model: what the finished model holds. A model that started from `random` or `init_from` is written whole.
    """

    every_steps: int = 500
    keep: int = 2
    keep_every_steps: int = 0
    keep_every_hours: float = 0.0
    keep_best: str = ""
    model: ModelContents = ModelContents.ADAPTERS

    def check(self) -> list[str]:
        errors = expect_positive(self, "every_steps", "keep")
        if self.keep_every_steps < 0 or (not errors and self.keep_every_steps % self.every_steps):
            errors.append(
                f"keep_every_steps: expected a multiple of every_steps={self.every_steps}, or 0, "
                f"got {self.keep_every_steps}"
            )
        if self.keep_every_hours < 0:
            errors.append(f"keep_every_hours: expected hours, or 0, got {self.keep_every_hours}")
        if self.keep_best and not re.fullmatch(r"validation/(\w+/)?(loss|accuracy|exact)", self.keep_best):
            errors.append(
                'keep_best: expected "validation/loss", "validation/accuracy", "validation/exact", one of a task or '
                f'sensor such as "validation/caption/loss", or "", got {self.keep_best!r}'
            )
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation while training: loss, token accuracy and exact answers of a split that is not trained on.

    Attributes:
        every_steps: steps between validations; the last step is also validated. 0: no validation.
        split: split of the run's datasets to validate on.
        share: share of the training images to hold out of each dataset that lacks `split`, and to validate on. They are
            held out whether or not the run is validated, and the same in every run.
        answers: number of questions of the split whose answers are generated and scored with the metrics of an
            evaluation. 0: none.
    """

    every_steps: int = 0
    split: str = "val"
    share: float = 0.0
    answers: int = 0

    def check(self) -> list[str]:
        errors = []
        if self.every_steps < 0:
            errors.append(f"every_steps: expected a number of steps, or 0, got {self.every_steps}")
        if not self.split:
            errors.append("split: expected the name of a split, got an empty one")
        if not 0 <= self.share < 1:
            errors.append(f"share: expected a share of 0 or more and below 1, got {self.share}")
        if self.answers < 0:
            errors.append(f"answers: expected a number of questions, or 0, got {self.answers}")
        return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """Ends a process that hangs.

    Attributes:
        minutes: time without a finished step after which a process prints the stacks of its threads and exits with
            status 75; 0: never.
    """

    minutes: float = 30.0

    def check(self) -> list[str]:
        return [] if self.minutes >= 0 else [f"minutes: expected a number of minutes, or 0, got {self.minutes}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each mesh axis. One of `data` and `fsdp` may be -1: all devices that remain.

    Attributes:
        data: shards the batch. If there are several slices, they lie along this axis.
        fsdp: shards the batch, and every large parameter, which is gathered where it is used.
        tensor: shards heads, FFN channels and the vocabulary.
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
            errors.append("data, fsdp: expected -1 for at most one of them, got -1 for both")
        return errors + expect_positive(self, "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One training run.

    Attributes:
        recipe: name of the recipe, for logs and the finished model.
        stage: which parameters are trained.
        model: the architecture.
        data: training data and batches.
        optim: optimiser, schedule and the guard against bad updates.
        init: model to start from: an embedded one (`tiny-base`, `tiny`) or a model directory; `random`: random weights
            and the embedded tokenizer, for debugging and benchmarks.
        init_parent: if `init` holds adapters alone, the directory of its parent; "": where the adapters record it.
        init_from: instead of `init`, checkpoints of other projects to start from: paths for `vit`, `convnext`, `llm`
            and optionally `projector`, or one for `model`; `earthgpt convert import` reads the same.
        checkpoint: when checkpoints are saved, which are retained, and what the finished model holds.
        validation: how often, and on which split, the model is validated.
        watchdog: when a process that hangs is ended.
        trainable_attention: which attention kernels stage `align` trains.
        frozen_dtype: storage of the parameters that the stage does not train.
        mesh: number of devices along each mesh axis.
        remat: which activations are kept for the backward pass: a name such as `auto` or `full`, or the outputs to keep
            as in `o,down,gate:30`, see `config.remat`.
        attention_impl: attention kernel. A run may be resumed with another `mesh`, `remat` and `attention_impl`.
        seed: seed of initialisation, sampling and augmentation.
        log_every: steps between updates of the progress bar, TensorBoard and throughput.jsonl.
    """

    recipe: str
    stage: Stage
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    init: str = ""
    init_parent: str = ""
    init_from: dict[str, str] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    trainable_attention: TrainableAttention = TrainableAttention.QKVO
    frozen_dtype: FrozenDType = FrozenDType.BFLOAT16
    mesh: MeshConfig = MeshConfig()
    remat: str = Remat.NONE
    attention_impl: AttentionImpl = AttentionImpl.AUTO
    seed: int = 0
    log_every: int = 10

    def check(self) -> list[str]:
        errors = expect_positive(self, "log_every")
        if not 0 <= self.seed < 2**32:
            errors.append(f"seed: expected 0..{2**32 - 1}, got {self.seed}")
        if bool(self.init) == bool(self.init_from):
            errors.append(f"init, init_from: expected exactly one of them, got {self.init!r} and {self.init_from}")
        has_adapter = self.model.adapter.kind is not AdapterKind.NONE
        if has_adapter != (self.stage is Stage.INSTRUCT):
            expected = "an adapter" if self.stage is Stage.INSTRUCT else "none"
            errors.append(f"model.adapter.kind: stage {self.stage} expects {expected}, got {self.model.adapter.kind}")
        errors += policy_errors(self.remat, depth=self.model.llm.depth)
        if self.data.batch_size % self.optim.microbatches:
            errors.append(
                f"optim.microbatches: expected a divisor of data.batch_size={self.data.batch_size}, "
                f"got {self.optim.microbatches}"
            )
        if self.validation.every_steps and self.validation.split == self.data.split:
            errors.append(f"validation.split: expected another split than data.split, got {self.data.split!r} for both")
        if self.checkpoint.keep_best and (
            not self.validation.every_steps or self.validation.every_steps % self.checkpoint.every_steps
        ):
            errors.append(
                f"validation.every_steps: checkpoint.keep_best expects a multiple of checkpoint.every_steps="
                f"{self.checkpoint.every_steps}, so that every validated step is saved, got "
                f"{self.validation.every_steps}"
            )
        for name, heads in (("heads", self.model.llm.heads), ("kv_heads", self.model.llm.kv_heads)):
            if heads % self.mesh.tensor:
                errors.append(f"mesh.tensor: expected a divisor of model.llm.{name}={heads}, got {self.mesh.tensor}")
        if self.data.seq_len < self.model.visual_tokens + 16:
            errors.append(
                f"data.seq_len: expected space for {self.model.visual_tokens + 3} image slots and text, "
                f"got {self.data.seq_len}"
            )
        return errors
