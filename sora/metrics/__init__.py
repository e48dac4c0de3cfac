"""Scores as pure functions with thin torchmetrics classes over them: distributions, reconstruction, prompt adherence."""
