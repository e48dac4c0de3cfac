"""The plan: which clips form which pack at which optimiser step, made from metadata alone.

A plan is a pure function of (fingerprint, seed, step). It knows nothing of workers, ranks or what was drawn before, so a
loader's whole state is one integer. A step is a fixed number of packs, and R ranks that divide it take them in turn.
"""

from sora.data.plan.clips import ClipLimits, ClipTable, LatentClips
from sora.data.plan.cost import Cost
from sora.data.plan.crops import CropPlan
from sora.data.plan.filling import Bucketed, Filling, Packed, Padded
from sora.data.plan.listing import Listing, PackPlan
from sora.data.plan.plan import TokenPlan
from sora.data.plan.steps import Crop, Item, Pack, Plan, StepPlan

__all__ = [
    "Bucketed",
    "ClipLimits",
    "ClipTable",
    "Cost",
    "Crop",
    "CropPlan",
    "Filling",
    "Item",
    "LatentClips",
    "Listing",
    "Pack",
    "PackPlan",
    "Packed",
    "Padded",
    "Plan",
    "StepPlan",
    "TokenPlan",
]
