from sora.assembly.door import OpenedCaptioner as OpenedCaptioner
from sora.assembly.door import OpenedRun as OpenedRun
from sora.assembly.door import open_captioner as open_captioner
from sora.assembly.door import open_run as open_run
from sora.assembly.door import open_vae as open_vae
from sora.data.loading.dataset import ClipDataset as ClipDataset
from sora.data.loading.dataset import DatasetClip as DatasetClip
from sora.data.loading.dataset import open_dataset as open_dataset

__version__: str
