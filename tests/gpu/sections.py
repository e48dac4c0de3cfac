"""The sections of a check, in order of worth."""

from __future__ import annotations

from tests.gpu import attention, batching, ceilings, parts, step, training
from tests.gpu.record import Section

SECTIONS = (
    Section("ceilings", ceilings.ceilings, 30),
    Section("attention", attention.attention, 120),
    Section("correctness", step.correctness, 90),
    Section("waiting", step.waiting, 60),
    Section("speed", step.speed, 150),
    Section("compiling", step.compiling, 150),
    Section("batching", batching.batching, 60),
    Section("peer", batching.peer, 60, batching.without_diffusers),
    Section("training", training.training, 180),
    Section("mesh", parts.mesh, 90),
    Section("vae", parts.vae, 60),
    Section("sampling", parts.sampling, 60),
    Section("evaluation", parts.evaluation, 30),
)
