"""Recognises datasets that were drawn from the built-in world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sora.gate.former_names import with_current_names

SOURCE = "sora.ingest.WorldSource"


def world_of(described: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings of the world that a dataset was drawn from, by its dataset.json; None for any other dataset."""
    source = with_current_names(described["about"].get("config", {}).get("source", {}))
    return source["world"] if source.get("_target_") == SOURCE else None
