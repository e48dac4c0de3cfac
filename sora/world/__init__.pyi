from sora.world.attributes import WorldAttributes as WorldAttributes
from sora.world.world import Prompt as Prompt
from sora.world.world import Scene as Scene
from sora.world.world import World as World
from sora.world.world import WorldClip as WorldClip
