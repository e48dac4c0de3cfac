from sora.text.all_captions import AllCaptions as AllCaptions
from sora.text.all_captions import captions_in as captions_in
from sora.text.byte import ByteEncoder as ByteEncoder
from sora.text.byte import ByteText as ByteText
from sora.text.classes import ClassEncoder as ClassEncoder
from sora.text.encoder import IdentityText as IdentityText
from sora.text.encoder import TextEncoder as TextEncoder
from sora.text.packing import pack_text as pack_text
from sora.text.pooled import PooledCaptions as PooledCaptions
from sora.text.pooled import PooledText as PooledText
from sora.text.pooled import WholeEncoder as WholeEncoder
from sora.text.pretrained import (
    Pretrained as Pretrained,
)
from sora.text.pretrained import (
    PretrainedEncoder as PretrainedEncoder,
)
from sora.text.pretrained import (
    PretrainedPooled as PretrainedPooled,
)
from sora.text.pretrained import (
    alike as alike,
)
from sora.text.pretrained import (
    refuse_nothing as refuse_nothing,
)
