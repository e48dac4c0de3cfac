"""Training objective of the VAE."""

from __future__ import annotations

from jaxtyping import Float, UInt8
from torch import Tensor

from sora.vae.vae import VideoVAE, from_uint8


class VaeObjective:
    """Weighted sum of absolute error, squared error, edge error and KL divergence, each averaged over its values.

    l1, l2: weights of the absolute and the squared error of pixels in [-1, 1]. edge: weight of `edge_error`, which keeps edges sharp.
    kl: weight of the KL divergence of the posterior, in nats per latent value.
    """

    def __init__(self, *, l1: float, l2: float, edge: float, kl: float) -> None:
        for name, weight in (("l1", l1), ("l2", l2), ("edge", edge), ("kl", kl)):
            if weight < 0:
                raise ValueError(f"the weight {name} must not be below 0, it is {weight}; change objective.{name}")
        self.weights = {"l1": l1, "l2": l2, "edge": edge, "kl": kl}

    def __call__(self, vae: VideoVAE, frames: UInt8[Tensor, "B T H W 3"], noise: Float[Tensor, "B C t h w"]) -> dict[str, Tensor]:
        """Unweighted terms by name, and their weighted sum as "total". noise: standard normal, with the shape of the latents."""
        posterior = vae.posterior(frames)
        decoded = vae.decode_float(vae.whiten(posterior.sample(noise)))
        error = decoded - from_uint8(frames).to(decoded.dtype)
        terms = {"l1": error.abs().mean(), "l2": error.square().mean(), "edge": edge_error(error), "kl": posterior.kl().mean()}
        terms["total"] = sum((self.weights[name] * terms[name] for name in self.weights), start=error.new_zeros(()))
        return terms


def edge_error(error: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, ""]:
    """Mean absolute difference of the error between neighbouring pixels (gradient difference loss, Mathieu et al. 2016)."""
    rows = error[..., 1:, :] - error[..., :-1, :]
    columns = error[..., :, 1:] - error[..., :, :-1]
    return 0.5 * (rows.abs().mean() + columns.abs().mean())
