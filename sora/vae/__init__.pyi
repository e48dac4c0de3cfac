from sora.vae.losses import VaeObjective as VaeObjective
from sora.vae.losses import edge_error as edge_error
from sora.vae.vae import (
    Posterior as Posterior,
)
from sora.vae.vae import (
    VideoVAE as VideoVAE,
)
from sora.vae.vae import (
    check_levels as check_levels,
)
from sora.vae.vae import (
    decoder_trunk as decoder_trunk,
)
from sora.vae.vae import (
    encoder_trunk as encoder_trunk,
)
from sora.vae.vae import (
    fill_first_group as fill_first_group,
)
from sora.vae.vae import (
    from_uint8 as from_uint8,
)
from sora.vae.vae import (
    to_uint8 as to_uint8,
)
from sora.vae.vae import (
    whole_stride as whole_stride,
)
