from sora.patches.packing import (
    frame_times as frame_times,
)
from sora.patches.packing import (
    pack as pack,
)
from sora.patches.packing import (
    patch_times as patch_times,
)
from sora.patches.packing import (
    positions as positions,
)
from sora.patches.packing import (
    unpack as unpack,
)
from sora.patches.patchifier import Patchifier as Patchifier
