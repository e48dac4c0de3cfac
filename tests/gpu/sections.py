"""The sections of a check, in order of worth."""

from __future__ import annotations

from tests.gpu import attention, batching, ceilings, parts, step, training
from tests.gpu.record import Section

SECTIONS = (
    Section("ceilings", ceilings.ceilings, 30, 6),
    Section("attention", attention.attention, 150, 8),
    Section("correctness", step.correctness, 90, 4),
    Section("waiting", step.waiting, 60, 24),
    Section("speed", step.speed, 150, 40),
    Section("compiling", step.compiling, 150, 24),
    Section("batching", batching.batching, 60, 16),
    Section("peer", batching.peer, 60, 24, batching.without_diffusers),
    Section("training", training.training, 180, 8, training.without_data),
    Section("mesh", parts.mesh, 90, 4, training.without_data),
    Section("vae", parts.vae, 60, 24),
    Section("sampling", parts.sampling, 60, 16),
    Section("evaluation", parts.evaluation, 30, 2),
)
