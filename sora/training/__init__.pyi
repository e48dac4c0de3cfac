from sora.training.activation_checkpointing import (
    recompute_all as recompute_all,
)
from sora.training.activation_checkpointing import (
    recompute_all_but_attention as recompute_all_but_attention,
)
from sora.training.activation_checkpointing import (
    recompute_by_size as recompute_by_size,
)
from sora.training.activation_checkpointing import (
    recompute_every_n as recompute_every_n,
)
from sora.training.activation_checkpointing import (
    recompute_none as recompute_none,
)
from sora.training.guard import Guard as Guard
from sora.training.guard import Suspects as Suspects
from sora.training.guard import deviations as deviations
from sora.training.logging.sinks import (
    Csv as Csv,
)
from sora.training.logging.sinks import (
    Nowhere as Nowhere,
)
from sora.training.logging.sinks import (
    TensorBoard as TensorBoard,
)
from sora.training.logging.sinks import (
    Wandb as Wandb,
)
from sora.training.logging.sinks import (
    described as described,
)
from sora.training.logging.sinks import (
    follow as follow,
)
from sora.training.logging.sinks import (
    main as main,
)
from sora.training.logging.sinks import (
    serve as serve,
)
from sora.training.optim.ema import (
    Average as Average,
)
from sora.training.optim.ema import (
    Averaging as Averaging,
)
from sora.training.optim.ema import (
    PostHoc as PostHoc,
)
from sora.training.optim.ema import (
    constant_decay as constant_decay,
)
from sora.training.optim.ema import (
    power_decay as power_decay,
)
from sora.training.optim.optimizers import Muon as Muon
from sora.training.optim.optimizers import adamw as adamw
from sora.training.optim.optimizers import muon as muon
from sora.training.optim.optimizers import orthogonalise as orthogonalise
from sora.training.optim.schedules import (
    constant_schedule as constant_schedule,
)
from sora.training.optim.schedules import (
    cosine_schedule as cosine_schedule,
)
from sora.training.optim.schedules import (
    linear_tail_schedule as linear_tail_schedule,
)
from sora.training.trainers import (
    Unprofiled as Unprofiled,
)
from sora.training.trainers import (
    auto_trainer as auto_trainer,
)
from sora.training.trainers import (
    mesh_trainer as mesh_trainer,
)
from sora.training.trainers import (
    single_trainer as single_trainer,
)
