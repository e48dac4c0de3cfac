"""All scores of two sets of features, from one pass of the extractor, under keys with the extractor's name and the clips' length."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sora.metrics.distribution.diversity import inception_score, vendi_score
from sora.metrics.distribution.frechet import check_features, frechet_distance, frechet_split
from sora.metrics.distribution.kernel import JEDI, KVD, kernel_splits
from sora.metrics.distribution.manifold import overlap
from sora.metrics.distribution.permutation import (
    LEAST_PERMUTATIONS,
    PooledFeatures,
    frechet_splits,
    in_order,
    law_error,
    no_difference,
    pooled,
)
from sora.metrics.distribution.pool import Pool
from sora.metrics.distribution.resampling import extrapolate, frechet_interval

SHOWN = 0.1  # share of a distance: above this `infinite_error` the extrapolation is omitted


def in_one_order(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows sorted by their values, so that random draws from them do not depend on batches, workers or ranks."""
    places = in_order(features.detach().cpu().double().numpy())
    return features[torch.from_numpy(places).to(features.device)]


def compare_features(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m _"],
    *,
    key: str,
    ddof: int,
    seed: int,
    bootstrap: int,
    permutations: int,
    neighbours: int,
) -> dict[str, float]:
    """`frechet/KEY`, `kvd/KEY`, `jedi_formula/KEY` with their intervals and floors; precision, recall, density and coverage; Vendi score.

    permutations: random splits of the pool of both sets, which give a distance its `floor` (the expected distance of such sets without a
    difference), its `p`, and, for the Fréchet distance, `debiased` (minus the floor) and `over_floor`; 0 omits these. The unbiased kernel
    distance has the floor 0. bootstrap: repeats for the interval `low` to `high`, 0 for none. `split` is the distance of random halves of
    the real set. `infinite` (with its line's `slope` and `r2`) is given only if `infinite_error`, which is the 1/n law's result for sets
    that do not differ plus two standard errors, is at most a tenth of the distance. Scores that need larger sets are omitted: the split
    below 4 clips, the extrapolation below 12, precision and the like without `neighbours` others.
    """
    check_features(real, fake)
    if permutations != 0 and permutations < LEAST_PERMUTATIONS:
        raise ValueError(f"permutations={permutations}: a p value below 0.05 takes at least {LEAST_PERMUTATIONS}; 0 leaves it out")
    real, fake, both = in_one_order(real), in_one_order(fake), pooled(real, fake)
    found = {"frechet": frechet_distance(real, fake, ddof=ddof)}
    found |= _floor(found["frechet"], both, permutations, ddof=ddof, seed=seed) if permutations else {}
    found |= _resampled(real, fake, ddof=ddof, seed=seed, bootstrap=bootstrap)
    if "frechet/infinite_error" in found and found["frechet/infinite_error"] <= SHOWN * found["frechet"]:
        line = extrapolate(real, fake, seed=seed, ddof=ddof)
        found |= {"frechet/infinite": line.infinite, "frechet/infinite_slope": line.slope, "frechet/infinite_r2": line.r_squared}
    found |= _kernels(both, permutations, seed=seed)
    if min(len(real), len(fake)) > neighbours:
        shares = overlap(real, fake, neighbours=neighbours)
        found |= {"precision": shares.precision, "recall": shares.recall, "density": shares.density, "coverage": shares.coverage}
    found |= {"vendi_real": vendi_score(real), "vendi_fake": vendi_score(fake)}
    found |= {"n_real": float(len(real)), "n_fake": float(len(fake))}
    return {f"{name.partition('/')[0]}/{key}{name[len(name.partition('/')[0]) :]}": value for name, value in found.items()}


def _floor(distance: float, both: PooledFeatures, permutations: int, *, ddof: int, seed: int) -> dict[str, float]:
    """The floor of a Fréchet distance and the scores that follow from it."""
    pool, n = Pool(both.features, ddof=ddof), int(both.first.sum())
    values = frechet_splits(pool, both.labelled(permutations, seed=seed))
    none = no_difference(values)
    found = {"frechet/floor": none.floor, "frechet/p": none.p, "frechet/debiased": distance - none.floor}
    if none.floor > 0:
        found["frechet/over_floor"] = distance / none.floor
    if min(n, pool.clips - n) >= 12:
        error, deviation = law_error(pool, n, pool.clips - n, values[1:], seed=seed)
        found["frechet/infinite_error"] = abs(error) + 2 * deviation
    return found


def _resampled(real: Tensor, fake: Tensor, *, ddof: int, seed: int, bootstrap: int) -> dict[str, float]:
    found = {"frechet/split": frechet_split(real, seed=seed)} if len(real) >= 4 else {}
    if bootstrap:
        found["frechet/low"], found["frechet/high"] = frechet_interval(real, fake, repeats=bootstrap, seed=seed, ddof=ddof)
    return found


def _kernels(both: PooledFeatures, permutations: int, *, seed: int) -> dict[str, float]:
    """The kernel distances; both, and all their splits, from one pass."""
    unbiased, biased = kernel_splits(both.features, both.labelled(permutations, seed=seed), [KVD, JEDI])
    found = {"kvd": float(unbiased[0]), "jedi_formula": float(biased[0])}
    if permutations:
        none = no_difference(biased)
        found |= {"kvd/p": no_difference(unbiased).p, "jedi_formula/floor": none.floor, "jedi_formula/p": none.p}
    return found


def class_figures(fake: Float[Tensor, "n classes"], *, key: str, seed: int) -> dict[str, float]:
    """The inception score of generated clips, for features that are class logits: of the whole set, and the mean over ten parts."""
    found = {f"inception_score/{key}": inception_score(fake)[0]}
    if len(fake) >= 20:
        mean, deviation = inception_score(in_one_order(fake), splits=10, seed=seed)
        found |= {f"inception_score/{key}/ten_parts": mean, f"inception_score/{key}/ten_parts_deviation": deviation}
    return found
