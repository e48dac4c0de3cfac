from sora.metrics.distribution.distribution import VideoDistribution as VideoDistribution
from sora.metrics.extractors.efficientnet import (
    EfficientNetLite0 as EfficientNetLite0,
)
from sora.metrics.extractors.efficientnet import (
    Lite0 as Lite0,
)
from sora.metrics.extractors.efficientnet import (
    MBConv as MBConv,
)
from sora.metrics.extractors.efficientnet import (
    convolve as convolve,
)
from sora.metrics.extractors.flow_histograms import FlowHistograms as FlowHistograms
from sora.metrics.extractors.flow_histograms import histogram as histogram
from sora.metrics.extractors.i3d_files import I3DScript as I3DScript
from sora.metrics.extractors.i3d_files import I3DWeights as I3DWeights
from sora.metrics.extractors.i3d_files import name_of as name_of
from sora.metrics.extractors.motion3d import Motion3D as Motion3D
from sora.metrics.extractors.pretrained import (
    PooledEmbedding as PooledEmbedding,
)
from sora.metrics.extractors.pretrained import (
    PretrainedFrames as PretrainedFrames,
)
from sora.metrics.extractors.pretrained import (
    PretrainedVideo as PretrainedVideo,
)
from sora.metrics.extractors.pretrained import (
    fingerprint_of as fingerprint_of,
)
from sora.metrics.extractors.pretrained import (
    folder_of as folder_of,
)
from sora.metrics.extractors.pretrained import (
    load as load,
)
from sora.metrics.extractors.pretrained import (
    width_of as width_of,
)
from sora.metrics.extractors.rand3d import Random3D as Random3D
from sora.metrics.extractors.transnet import Dilated as Dilated
from sora.metrics.extractors.transnet import Stack as Stack
from sora.metrics.extractors.transnet import TransNetV2 as TransNetV2
from sora.metrics.extractors.transnet import transnet_trunk as transnet_trunk
