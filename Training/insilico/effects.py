"""What a stage of fibrosis does to liver and spleen: distributions to draw signs from.

Spleen volume, liver segmental volume ratio and surface nodularity have the published mean and SD of
each stage (Resources/Published/signs.json of the library, which names the sources). The others have
no published distribution on CT; their values are chosen:

texture   SD in HU of the parenchyma in the band between Gaussians of 1.5 and 4 mm, beyond noise:
          1 + 0.7 per stage, so that painted livers have the SD that was measured in real ones
portal, vein, varices, ascites   share of patients with the sign: none before F3, and in F4 about
          half with varices and a third with ascites (D'Amico et al. 2006, J Hepatol 44:217-231,
          describes compensated and decompensated cirrhosis)

The latent values of a patient's signs have a correlation of `CORRELATION`: a liver that is advanced
for its stage is so in several signs.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from LiverFibrosisStagingLib.signs.published import published_signs
from LiverFibrosisStagingLib.stages import GROUPS, STAGES

SIGNS = ("spleen", "lobes", "surface", "texture", "portal", "vein", "varices", "ascites")
CORRELATION = 0.25
# Truncation: what a body can hold, and what can be drawn at a voxel of 1.5 mm.
LIMITS = {
    "spleen": (70.0, 1500.0),
    "lobes": (0.1, 0.9),
    "surface": (1.4, 6.0),
    "texture": (0.2, 6.0),
}
PUBLISHED = {"spleen": "spleen_volume_ml", "lobes": "lsvr", "surface": "nodularity_mm10"}
TEXTURE_HU = tuple((1.0 + 0.7 * stage, 0.7 + 0.35 * stage) for stage in range(5))
# Share of patients with the sign, by stage.
SHARES = {
    "portal": (0.0, 0.0, 0.0, 0.25, 0.5),
    "vein": (0.0, 0.0, 0.0, 0.1, 0.3),
    "varices": (0.0, 0.0, 0.0, 0.15, 0.45),
    "ascites": (0.0, 0.0, 0.0, 0.05, 0.3),
}
GRADED = tuple(LIMITS)


class Signs(NamedTuple):
    """The drawn signs of one case.

    severity: the stage plus how advanced the patient is within it, SD 0.6, common to all signs.
    """

    stage: int
    severity: float
    spleen_ml: float
    lsvr: float  # segments I to III over IV to VIII, by volume
    nodularity: float  # mean distance of the surface from its smooth shape, 0.1 mm
    texture_hu: float
    portal_mm: float  # radius of the portal vein's trunk
    vein_mm: float  # radius of the recanalised umbilical vein; 0 if there is none
    varices: int
    ascites_mm: float  # thickness of the fluid around the organs; 0 if there is none


class _Margin(NamedTuple):
    mean: float  # of the value, or of its logarithm
    sd: float
    logarithmic: bool

    def value(self, latent: float) -> float:
        found = self.mean + self.sd * latent
        return float(np.exp(found)) if self.logarithmic else float(found)

    def latent(self, value: np.ndarray) -> np.ndarray:
        return ((np.log(value) if self.logarithmic else value) - self.mean) / self.sd


@cache
def _margins() -> tuple[dict[str, _Margin], ...]:
    """For each stage: sign -> its distribution."""
    groups = {(g.sign.key, g.group): g for g in published_signs().groups}
    found = []
    for stage, name in enumerate(STAGES):
        margins = {"texture": _log_normal(*TEXTURE_HU[stage])}
        for sign, key in PUBLISHED.items():
            group = groups.get((key, name)) or groups[key, "F0-F1"]
            logarithmic = group.sign.shape == "log-normal"
            margins[sign] = (
                _log_normal(group.mean, group.sd)
                if logarithmic
                else _Margin(group.mean, group.sd, False)
            )
        found.append(margins)
    return tuple(found)


def _log_normal(mean: float, sd: float) -> _Margin:
    """The log-normal distribution with this mean and SD."""
    spread = np.log1p((sd / mean) ** 2)
    return _Margin(float(np.log(mean) - spread / 2), float(np.sqrt(spread)), True)


def draw(stage: int, rng: np.random.Generator, only: Collection[str] | None = None) -> Signs:
    """Signs of a patient of `stage` 0..4.

    only: the signs of `SIGNS` that have the values of the stage; the others have those of F0. The
    same state of `rng` gives a patient with the same quantiles of all signs in every stage. Raises
    ValueError for an unknown stage or sign.
    """
    if stage not in range(len(STAGES)) or set(only or ()) - set(SIGNS):
        raise ValueError(f"stage {stage}, signs {only}: needed are 0..4 and signs of {SIGNS}.")
    common, *own = rng.normal(size=1 + len(GRADED))
    quantiles = rng.random(2 * len(SHARES))
    present, degree = quantiles[: len(SHARES)], quantiles[len(SHARES) :]
    painted = {sign: stage if only is None or sign in only else 0 for sign in SIGNS}
    value = {}
    for sign, latent in zip(GRADED, own):
        margin = _margins()[painted[sign]][sign]
        shared = np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * latent
        value[sign] = float(np.clip(margin.value(shared), *LIMITS[sign]))
    has = {sign: bool(share < SHARES[sign][painted[sign]]) for sign, share in zip(SHARES, present)}
    much = dict(zip(SHARES, degree))
    return Signs(
        stage=stage,
        severity=float(stage + 0.6 * common),
        spleen_ml=value["spleen"],
        lsvr=value["lobes"],
        nodularity=value["surface"],
        texture_hu=value["texture"],
        portal_mm=float(4.8 + 1.4 * much["portal"] + (2.0 if has["portal"] else 0.0)),
        vein_mm=float(2.0 + 2.5 * much["vein"]) if has["vein"] else 0.0,
        varices=3 + int(6 * much["varices"]) if has["varices"] else 0,
        ascites_mm=float(4.0 + 12.0 * much["ascites"]) if has["ascites"] else 0.0,
    )


def log_likelihoods(signs: Sequence[Signs], of: Collection[str] = SIGNS) -> np.ndarray:
    """Log-likelihood [case, stage] of the drawn values of the signs `of`, without the truncation.

    The degree of a sign that is present does not depend on the stage. Gaussian copula: the density
    of the graded signs is that of their latent values, divided by the margins' SD.
    """
    graded = [sign for sign in GRADED if sign in of]
    shares = [sign for sign in SHARES if sign in of]
    fields = {"spleen": "spleen_ml", "lobes": "lsvr", "surface": "nodularity"}
    fields |= {"texture": "texture_hu", "vein": "vein_mm", "ascites": "ascites_mm"}
    values = {s: np.array([getattr(c, fields.get(s, s)) for c in signs]) for s in graded}
    has = {s: np.array([_has(case, s) for case in signs]) for s in shares}
    within = np.full((len(graded), len(graded)), CORRELATION) + np.eye(len(graded)) * (
        1 - CORRELATION
    )
    inverse = np.linalg.inv(within) if graded else within
    found = np.zeros((len(signs), len(STAGES)))
    for stage, margins in enumerate(_margins()):
        if graded:
            latent = np.stack([margins[s].latent(values[s]) for s in graded], axis=1)
            found[:, stage] -= 0.5 * np.einsum("ni,ij,nj->n", latent, inverse, latent)
            found[:, stage] -= sum(np.log(margins[s].sd) for s in graded)
        for sign in shares:
            share = np.clip(SHARES[sign][stage], 1e-6, 1 - 1e-6)
            found[:, stage] += np.log(np.where(has[sign], share, 1 - share))
    return found


def _has(case: Signs, sign: str) -> bool:
    return case.portal_mm > 6.2 if sign == "portal" else getattr(case, _DEGREES[sign]) > 0


_DEGREES = {"vein": "vein_mm", "varices": "varices", "ascites": "ascites_mm"}


def ceilings(count: int = 4000, seed: int = 0) -> dict[str, dict[str, float]]:
    """AUC of each sign alone, and of all, for the three groups, by exact likelihood ratios.

    count: cases per stage; all stages are equally common.
    """
    rng = np.random.default_rng(seed)
    stages = np.repeat(np.arange(len(STAGES)), count)
    cases = [draw(int(stage), rng) for stage in stages]
    found = {}
    for name, of in [*((sign, (sign,)) for sign in SIGNS), ("all", SIGNS)]:
        likelihood = np.exp(_shifted(log_likelihoods(cases, of)))
        found[name] = {}
        for group, first in GROUPS.items():
            score = likelihood[:, first:].mean(axis=1) / likelihood[:, :first].mean(axis=1)
            found[name][group] = _auc(score, stages >= first)
    return found


def _shifted(log: np.ndarray) -> np.ndarray:
    return log - log.max(axis=1, keepdims=True)


def _auc(score: np.ndarray, positive: np.ndarray) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(score)
    count = int(positive.sum())
    rest = len(score) - count
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))
