"""How long a network is trained, and with which learning rate.

The rate rises, stays, and falls to zero, as a cosine, over the last two fifths of the steps
("warmup-stable-decay": Hu et al. 2024, arXiv:2404.06395; Haegele et al. 2024, arXiv:2405.18392).
Until it falls it does not depend on the number of steps, so a run can be extended: it goes back to
where the rate began to fall, and becomes the run that it would have been with more steps from the
start.
"""

from dataclasses import dataclass
from math import ceil, cos, pi
from typing import Literal, NamedTuple

from lfs.build import MULTIPLES, Build
from LiverFibrosisStagingLib.errors import StagingError

FALLING = 0.4  # share of the steps


class Course(NamedTuple):
    """Numbers of steps: with crops, until the rate falls, and in all."""

    crops: int
    stable: int
    total: int

    @classmethod
    def of(cls, crops: int, total: int) -> "Course":
        """The course of so many steps."""
        return cls(crops, total - round(FALLING * total), total)

    def falling_from(self, step: int) -> "Course":
        """This course, with a rate that falls from an earlier step on, over as large a share."""
        return self._replace(stable=step, total=min(self.total, round(step / (1 - FALLING))))


@dataclass(frozen=True)
class Schedule:
    """Hyperparameters.

    epochs: an epoch is as many patches as there are CTs to train on, at least `epoch_patches`: a
    network needs a number of steps, and a small cohort would give too few. crop_epochs: how many of
    them, at the start, use crops of `crop` x `crop` voxels (`data.Draws`), 2 x `batch` per step;
    the others, `batch` whole sections. steps, crop_steps: numbers of steps, in place of those that
    follow from the epochs. learning_rate: of AdamW, reached after `warm_up` steps. sparsity:
    weight, after the crops, of the target layer's mean absolute activation in the loss; without it,
    features are active everywhere, and Grad-CAM shows the background instead of organs. temper: see
    `data.Draws`. ordinal: soft ordinal labels instead of plain cross-entropy. check_every: steps
    between validations. stop_on: what validation compares (`validation.criterion`). patience:
    validations without an improvement after which the rate begins to fall or, if it is falling,
    training stops; not counted during the steps with crops. mixed_precision: bfloat16 on GPUs. It
    is not used on CPUs, where it saves a fifth of the time but can give NaN gradients of
    convolutions (PyTorch 2.13). seed: of the initial weights and the draws.

    Raises StagingError if a value is out of its range.
    """

    epochs: int = 20
    crop_epochs: int = 16
    epoch_patches: int = 176
    steps: int | None = None
    crop_steps: int | None = None
    batch: int = 8
    learning_rate: float = 4e-3
    warm_up: int = 40
    crop: int = 80
    sparsity: float = 0.4
    temper: float = 0.5
    ordinal: bool = True
    check_every: int = 20
    stop_on: Literal["balanced", "loss", "kappa"] = "balanced"
    patience: int = 3
    mixed_precision: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            **dict.fromkeys(("epoch_patches", "batch", "crop", "check_every", "patience"), 1),
            **dict.fromkeys(("crop_epochs", "warm_up", "seed", "sparsity", "temper"), 0),
            "epochs": 1,
        }
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise StagingError(f"{name} {getattr(self, name)}: {low} or more is needed.")
        if not 0 < self.learning_rate < 1:
            raise StagingError(
                f"learning_rate {self.learning_rate}: more than 0, below 1 is needed."
            )

    def course(self, cases: int) -> Course:
        """The steps for so many CTs to train on; StagingError if none uses whole sections."""
        epoch = max(cases, self.epoch_patches)
        crops, total = self.crop_steps, self.steps
        if crops is None:
            crops = ceil(self.crop_epochs * epoch / (2 * self.batch))
        if total is None:
            total = crops + ceil((self.epochs - self.crop_epochs) * epoch / self.batch)
        if not 0 <= crops < total:
            raise StagingError(
                f"{total} steps, {crops} of them with crops: at least one step without crops is "
                "needed (epochs and crop_epochs, or steps and crop_steps)."
            )
        return Course.of(crops, total)

    def rate(self, step: int, course: Course) -> float:
        """The learning rate of a step, counted from 0."""
        risen = min(1.0, (step + 1) / max(self.warm_up, 1))
        fallen = max(0.0, (step - course.stable + 1) / (course.total - course.stable + 1))
        return self.learning_rate * risen * (1 + cos(pi * fallen)) / 2


def check_crop(schedule: Schedule, build: Build) -> None:
    """Raise StagingError if the crops are larger than the sections or too small to be pooled."""
    least, most = max(MULTIPLES), min(build.patch_size[1:])
    if not least <= schedule.crop <= most:
        raise StagingError(
            f"crop {schedule.crop}: {least} to {most} voxels are needed, as sections have {most}."
        )


FULL_SCHEDULE = Schedule()
# For trying out the command in minutes.
SMALL_SCHEDULE = Schedule(
    epochs=10, crop_epochs=8, epoch_patches=16, batch=4, warm_up=5, crop=40, check_every=8
)
