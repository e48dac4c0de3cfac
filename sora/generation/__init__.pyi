from sora.generation.generator import Generator as Generator
from sora.generation.generator import Recipe as Recipe
from sora.generation.generator import Request as Request
from sora.generation.generator import Stopped as Stopped
