"""Every figure that two sets of features give, under keys that name the extractor and the clips' length: all from one feature pass."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sora.metrics.diversity import inception_score, vendi_score
from sora.metrics.frechet import check_features, frechet_distance, frechet_floor, frechet_split
from sora.metrics.kernel import jedi_distance, kernel_distance
from sora.metrics.manifold import overlap
from sora.metrics.resampling import extrapolate, frechet_interval


def in_one_order(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows sorted by their values, so that what is drawn from them does not depend on batches, workers or ranks."""
    keys = features.detach().cpu().double().numpy()
    return features[torch.from_numpy(np.lexsort(keys.T[::-1])).to(features.device)]


def compare_features(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m _"], *, key: str, ddof: int, seed: int, bootstrap: int, neighbours: int
) -> dict[str, float]:
    """`frechet/KEY` with its floor, interval, debiased and extrapolated values, `kvd`, the JEDi formula, precision and its kin, Vendi.

    bootstrap: repeats for the interval, 0 for none. What a set is too small for is left out: the split below 4 clips, the extrapolation
    below 12, precision and its kin without `neighbours` others.
    """
    check_features(real, fake)
    real, fake = in_one_order(real), in_one_order(fake)
    found = _frechet(real, fake, ddof=ddof, seed=seed, bootstrap=bootstrap)
    found |= {"kvd": kernel_distance(real, fake), "jedi_formula": jedi_distance(real, fake)}
    if min(len(real), len(fake)) > neighbours:
        shares = overlap(real, fake, neighbours=neighbours)
        found |= {"precision": shares.precision, "recall": shares.recall, "density": shares.density, "coverage": shares.coverage}
    found |= {"vendi_real": vendi_score(real), "vendi_fake": vendi_score(fake)}
    found |= {"n_real": float(len(real)), "n_fake": float(len(fake))}
    return {f"{name.partition('/')[0]}/{key}{name[len(name.partition('/')[0]) :]}": value for name, value in found.items()}


def _frechet(real: Tensor, fake: Tensor, *, ddof: int, seed: int, bootstrap: int) -> dict[str, float]:
    distance, floor = frechet_distance(real, fake, ddof=ddof), frechet_floor(real, len(real), len(fake))
    found = {"frechet": distance, "frechet/floor": floor, "frechet/debiased": distance - floor}
    if floor > 0:
        found["frechet/over_floor"] = distance / floor
    if len(real) >= 4:
        halves = frechet_split(real, seed=seed)
        found["frechet/split"] = halves
        # The floor falls as 1/n + 1/m; what halves score is brought to these sizes.
        found["frechet/floor_split"] = halves * (1 / len(real) + 1 / len(fake)) / (2 / (len(real) // 2))
    if bootstrap:
        found["frechet/low"], found["frechet/high"] = frechet_interval(real, fake, repeats=bootstrap, seed=seed, ddof=ddof)
    if min(len(real), len(fake)) >= 12:
        line = extrapolate(real, fake, seed=seed, ddof=ddof)
        found |= {"frechet/infinite": line.infinite, "frechet/infinite_slope": line.slope, "frechet/infinite_r2": line.r_squared}
    return found


def class_figures(fake: Float[Tensor, "n classes"], *, key: str, seed: int) -> dict[str, float]:
    """The inception score of generated clips, where features are class logits: of the whole set, and the mean of ten parts."""
    found = {f"inception_score/{key}": inception_score(fake)[0]}
    if len(fake) >= 20:
        mean, deviation = inception_score(in_one_order(fake), splits=10, seed=seed)
        found |= {f"inception_score/{key}/ten_parts": mean, f"inception_score/{key}/ten_parts_deviation": deviation}
    return found
