"""The choices of a fit: one frozen dataclass for each of its parts.

Defaults are the library's advice; what "auto" resolves to is written next to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from odn_hybrid.config.checks import check_ranges

__all__ = [
    "CONFIG_VERSION",
    "ChoiceConfig",
    "DataConfig",
    "DynamicConfig",
    "ExitConfig",
    "ExpansionConfig",
    "FitConfig",
    "FrozenConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ReloadConfig",
]

CONFIG_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which backbone. `name` is a timm name, or `torchvision/NAME`; None when the user brought a module.

    `stem="small"` replaces a ResNet's 7x7 stride-2 convolution and max-pool by a 3x3 stride-1
    convolution, as the Optimally Deep Networks paper does for images of 28 to 32 pixels.
    """

    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    stem: Literal["native", "small"] = "native"
    pretrained: bool = False
    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are sized and how they are augmented while training.

    `image_size=None`: the model's own size where it is fixed; otherwise the data's own if all images share
    one of 28 to 64 pixels (arrays: of 28 or more), 32 on the shorter side for smaller ones, and the model's
    default for other folders.
    `augment`: "shift" moves by up to 1/14 of the side; "shift_flip" also mirrors; "crop_flip" is the
    random resized crop of ImageNet training. `rand_augment` is one of timm's policies in its own words, e.g.
    "rand-m9-mstd0.5-inc1"; `erase` is the probability of erasing a random rectangle; `mixup` and `cutmix` are
    the parameters alpha of timm's `Mixup`, 0 for off.
    `normalise`: by which mean and deviation. "pretrained": those that the model says its weights were trained
    with; "data": those of the training split; "auto" is "pretrained" in the regimes finetune and frozen, and
    "data" in scratch. A frozen backbone needs those it was trained with.
    """

    source: str = "digits"
    root: str | None = None
    image_size: int | None = None
    augment: Literal["none", "shift", "shift_flip", "crop_flip"] = "shift"
    rand_augment: str | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    normalise: Literal["auto", "data", "pretrained"] = "auto"
    workers: int = 0


@dataclass(frozen=True, kw_only=True)
class ExitConfig:
    """Where exits stand and what their heads are. `every=2` puts an exit after every second unit.

    With `plan="thin"` the exits are the whole network with fewer and fewer units removed inside its stages,
    from the thinnest to the whole. `every=2` adds two units from one to the next. All answer with the
    backbone's own head; `head` and `args` are for the exits of prefix plans. An input cannot go on from one
    thin network to the next, so that there is no dynamic halting.

    `norms`, for batch normalisation of thin networks: "own" keeps running statistics for each of them,
    "affine" scale and shift too, "shared" has one set for all, a mixture.
    """

    head: str = "linear"
    args: dict[str, Any] = field(default_factory=dict)
    every: int = 1
    plan: Literal["prefix", "thin"] = "prefix"
    norms: Literal["own", "affine", "shared"] = "own"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Which training objective (a name in the registry) and its own options."""

    name: str = "depth_reg"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, rates, batch. "auto" is SGD for feature maps and AdamW for token sequences.

    `lr=None` is 0.1 per 128 images of a batch for SGD and 1e-3 per 128 for AdamW, a tenth of that when
    fine-tuning. `ema_epochs` is the horizon of the exponential moving average of the weights, in epochs of
    at least 50 steps (0 switches it off); the average is what is evaluated, kept and deployed.

    `batch_size` images make a step, over all devices and `accumulate` forwards (batch normalisation sees the
    images of one forward). `clip_grad` is the largest norm of all gradients together. `schedule` is the shape
    in which the rate falls to zero. `class_weights="balanced"` weighs classes by the inverse of their
    frequency. `args` are the optimizer's other options, e.g. {"betas": [0.9, 0.95]}. `layer_decay`
    multiplies rates from unit to unit towards the stem (for fine-tuning).
    """

    name: str = "auto"
    args: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    batch_size: int = 128
    accumulate: int = 1
    clip_grad: float | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    layer_decay: float | None = None
    ema_epochs: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ReloadConfig:
    """Numbers of the procedure "reload"; the defaults are the published ones (CIFAR-10 had no warm-up).

    `warmup_epochs` of all depths at `warmup_rate` times the rate, falling as a cosine; then one depth at a
    time, given up after `patience` epochs without a gain of validation accuracy. The rate is multiplied by
    `rate_factor` at every `rate_patience`-th epoch without a gain; depths after the first begin at
    `later_rate` times it. With `carry_best` a gain is one over the best of all depths so far.
    """

    warmup_epochs: float = 3.0
    warmup_rate: float = 0.1
    patience: int = 23
    rate_factor: float = 0.6
    rate_patience: int = 5
    later_rate: float = 0.5
    carry_best: bool = False


@dataclass(frozen=True, kw_only=True)
class ExpansionConfig:
    """Progressive depth expansion: when to go deeper, when to stop, when to anneal.

    `procedure`: "grow" is the library's; "reload" the published one (arXiv 2510.10764), which needs a target
    accuracy, has cross-entropy for its objective, plain momentum at 0.01 per 128 images for its "auto"
    optimizer and no average of the weights; of the fields below it takes `start` and the bounds other than
    `max_looks`. A recipe may say `expansion: reload` for short.

    `warmup_epochs` counts epochs (a fraction is allowed) in which all depths train in one shared forward
    while the rate rises. `look_ahead` exits beyond the current one train with it. With a target, a depth is
    given up after `patience` looks without a gain of `min_gain`; the chosen depth then trains until
    `settle_patience` looks bring no such gain, and the rate falls to zero over `cooldown` times the epochs
    that trained it. A look is one evaluation on the selection split, at the end of an epoch, or of as
    many as make 50 optimizer steps on small data sets.

    `backbone_epochs`: for so many epochs, before the warm-up, the deepest exit trains alone (the mixed regime
    of arXiv 2407.14320); all exits then train together, and with a target the search goes back from the
    whole network. None is 3 when fine-tuning and 0 otherwise. `decide`: "patience" as above; with "test",
    paired tests on the selection split decide too (`training.procedure.growing`). `preserve`: units that keep
    their state's shape start as the identity (`training.procedure.preserving`); for fresh weights only.

    `max_looks`, `max_epochs`, `max_train_macs` and `max_minutes` bound the whole search, cooldown included. A
    backbone phase, a warm-up, one look and the cooldown after it there are in any case; minutes of training
    are foreseen by the pace so far, so that a search they bound differs from one to the next.
    """

    procedure: Literal["grow", "reload"] = "grow"
    reload: ReloadConfig = field(default_factory=ReloadConfig)
    backbone_epochs: float | None = None
    decide: Literal["patience", "test"] = "patience"
    preserve: bool = False
    warmup_epochs: float = 0.25
    start: int = 1
    look_ahead: int = 1
    patience: int = 3
    min_gain: float = 0.0005
    settle_patience: int = 3
    cooldown: float = 0.3
    max_looks: int = 60
    max_epochs: float | None = None
    max_train_macs: float | None = None
    max_minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    """The "frozen" regime: exit heads trained on features of a backbone that stays as it is.

    The features that each head needs are computed once per `passes` over the training data (the first without
    augmentation) and kept on disk, in half precision, memory-mapped, at most `max_bytes` of them. `folder`:
    on which disk, None is that of temporary files; they are gone when the fit ends, however it ends.
    `epochs`: passes of each head over its features, at most: one that stops gaining on the selection split
    is done.

    Each head is trained by itself, for cross-entropy: as heads share nothing where the backbone is frozen,
    `objective` makes no difference, and neither `expansion` nor `optim` has a say, but for `batch_size`
    (twice as many images make a forward), `label_smoothing` and `class_weights`.
    """

    passes: int = 1
    epochs: int = 30
    max_bytes: float = 20e9
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChoiceConfig:
    """How the static depth is chosen, on the selection split only.

    With `target_accuracy` (a fraction): the shallowest depth that reaches `target_accuracy - tolerance`.
    Without: the shallowest depth shown to be non-inferior to the reference, that is, the hypothesis "its
    accuracy is lower by more than `tolerance`" is rejected at level `delta` over all looks and depths.

    With a budget (`max_macs` an image, `max_params`, fp32 `max_bytes`, or `max_latency_ms`, measured at
    batch 1 on the fit's device; several must all hold): the most accurate exit within it, or, where there is
    a target too, the shallowest that reaches it. Exits beyond a budget of MACs, parameters or bytes are not
    trained.
    """

    target_accuracy: float | None = None
    tolerance: float = 0.01
    delta: float = 0.05
    max_macs: float | None = None
    max_params: float | None = None
    max_bytes: float | None = None
    max_latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class DynamicConfig:
    """The promise that a fit tries to earn for dynamic halting, and for which policies.

    Accuracy lower than the reference's by at most `drop`, with confidence 1 - `delta`. `policy` is a family
    of `odn_hybrid.stopping.FAMILIES`; `recall` answers with the most confident exit so far; `scaling`
    calibrates each exit by one temperature, or by a factor and a shift per class ("vector"). `fold`: what is
    recorded and promised is the network with batch normalisation folded, which gives the same answers sooner.
    """

    drop: float = 0.01
    delta: float = 0.05
    policy: Literal["confidence", "margin", "entropy", "patience", "fixed", "lookahead", "snell"] = "snell"
    recall: bool = False
    scaling: Literal["temperature", "vector"] = "temperature"
    fold: bool = True


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything a fit depends on; `config.json` of a run directory repeats it.

    `regime`: "scratch" trains the backbone from the weights it comes with; "finetune" loads published weights
    for a model given by name (or those of `model.checkpoint`), normalises images as they were, and trains
    everything at a tenth of the rate; "frozen" loads them too, leaves the backbone as it is and trains exit
    heads on cached features.
    `start_from`: a run directory whose depth seeds the search. `compile`: train through `torch.compile`.
    `deterministic`: only deterministic algorithms, on a GPU as well.

    Example:
        >>> from odn_hybrid import FitConfig
        >>> FitConfig().objective.name, FitConfig(seed=3).seed
        ('depth_reg', 3)
    """

    version: int = CONFIG_VERSION
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    exits: ExitConfig = field(default_factory=ExitConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    expansion: ExpansionConfig = field(default_factory=ExpansionConfig)
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    frozen: FrozenConfig = field(default_factory=FrozenConfig)
    regime: Literal["scratch", "finetune", "frozen"] = "scratch"
    start_from: str | None = None
    compile: bool = False
    deterministic: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, CONFIG_VERSION)
