from sora.data.index.index import Index as Index
from sora.data.index.rows import Caption as Caption
from sora.data.index.rows import ClipFacts as ClipFacts
from sora.data.index.set_writers import CaptionSetWriter as CaptionSetWriter
from sora.data.index.set_writers import ScoreSetWriter as ScoreSetWriter
from sora.data.index.set_writers import SelectionWriter as SelectionWriter
from sora.data.index.writer import DatasetWriter as DatasetWriter
from sora.data.loading.latents import LatentBatches as LatentBatches
from sora.data.loading.latents import LatentData as LatentData
from sora.data.loading.loader import (
    FrameBatch as FrameBatch,
)
from sora.data.loading.loader import (
    FrameBatches as FrameBatches,
)
from sora.data.loading.loader import (
    FrameData as FrameData,
)
from sora.data.loading.loader import (
    StepData as StepData,
)
from sora.data.loading.loader import (
    read_clip as read_clip,
)
from sora.data.loading.loader import (
    step_loader as step_loader,
)
from sora.data.loading.videos import VideoBatches as VideoBatches
from sora.data.loading.videos import VideoData as VideoData
from sora.data.loading.videos import VideoPack as VideoPack
from sora.data.plan.cost import Cost as Cost
from sora.data.plan.cost import fitted_cost as fitted_cost
from sora.data.plan.crops import ClipRows as ClipRows
from sora.data.plan.crops import CropPlan as CropPlan
from sora.data.plan.filling import (
    Bucketed as Bucketed,
)
from sora.data.plan.filling import (
    Filled as Filled,
)
from sora.data.plan.filling import (
    Filling as Filling,
)
from sora.data.plan.filling import (
    Packed as Packed,
)
from sora.data.plan.filling import (
    Padded as Padded,
)
from sora.data.plan.filling import (
    best_fit as best_fit,
)
from sora.data.plan.filling import (
    summed as summed,
)
from sora.data.plan.plan import Packs as Packs
from sora.data.plan.plan import TokenPlan as TokenPlan
from sora.data.plan.plan import WindowDraws as WindowDraws
