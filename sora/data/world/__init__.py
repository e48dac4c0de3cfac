"""The built-in world of shapes in motion: procedurally rendered clips with exact captions and ground truth."""

from sora.data.world.language import DIRECTIONS, PALETTE, SHAPES, TURNS, parse
from sora.data.world.render import BACKGROUNDS
from sora.data.world.scenes import MOTIONS
from sora.data.world.world import Prompt, World, WorldClip
from sora.metrics.adherence import Facts

__all__ = ["BACKGROUNDS", "DIRECTIONS", "MOTIONS", "PALETTE", "SHAPES", "TURNS", "Facts", "Prompt", "World", "WorldClip", "parse"]
