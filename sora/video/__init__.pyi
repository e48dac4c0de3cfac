from sora.video.decoding.decord import DecordReader as DecordReader
from sora.video.decoding.guarded import GuardedReader as GuardedReader
from sora.video.decoding.pyav import PyAVReader as PyAVReader
from sora.video.decoding.pyav import Shown as Shown
from sora.video.decoding.pyav import settled as settled
from sora.video.decoding.pyav import stream as stream
from sora.video.decoding.torchcodec import TorchcodecReader as TorchcodecReader
from sora.video.files import probe as probe
from sora.video.files import read as read
from sora.video.files import write as write
from sora.video.reader import (
    Limits as Limits,
)
from sora.video.reader import (
    Reading as Reading,
)
from sora.video.reader import (
    ReadReport as ReadReport,
)
from sora.video.reader import (
    Timeline as Timeline,
)
from sora.video.reader import (
    VideoInfo as VideoInfo,
)
from sora.video.reader import (
    VideoReader as VideoReader,
)
from sora.video.reader import (
    check_rate as check_rate,
)
from sora.video.reader import (
    check_room as check_room,
)
from sora.video.reader import (
    check_start as check_start,
)
from sora.video.reader import (
    covering as covering,
)
from sora.video.reader import (
    middle as middle,
)
from sora.video.reader import (
    named as named,
)
from sora.video.reader import (
    too_large as too_large,
)
