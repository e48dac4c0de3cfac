from sora.diffusion.density import Density as Density
from sora.diffusion.density import LogitNormal as LogitNormal
from sora.diffusion.density import LogNormal as LogNormal
from sora.diffusion.density import Mode as Mode
from sora.diffusion.density import Uniform as Uniform
from sora.diffusion.discrete import Discrete as Discrete
from sora.diffusion.exponential import ddim as ddim
from sora.diffusion.exponential import dpm_solver as dpm_solver
from sora.diffusion.exponential import unipc as unipc
from sora.diffusion.guidance import Ask as Ask
from sora.diffusion.guidance import guide as guide
from sora.diffusion.guidance import projected_guide as projected_guide
from sora.diffusion.guidance import spread as spread
from sora.diffusion.guidance import summed as summed
from sora.diffusion.guidance import zero_star_guide as zero_star_guide
from sora.diffusion.levels import Schedule as Schedule
from sora.diffusion.levels import beta_levels as beta_levels
from sora.diffusion.levels import constant_shift as constant_shift
from sora.diffusion.levels import karras_levels as karras_levels
from sora.diffusion.levels import linear_quadratic_levels as linear_quadratic_levels
from sora.diffusion.levels import listed_levels as listed_levels
from sora.diffusion.levels import shift_by_tokens as shift_by_tokens
from sora.diffusion.levels import shifted as shifted
from sora.diffusion.levels import uniform_levels as uniform_levels
from sora.diffusion.objective import Noised as Noised
from sora.diffusion.objective import Objective as Objective
from sora.diffusion.objective import by_level as by_level
from sora.diffusion.objective import pack_levels as pack_levels
from sora.diffusion.path import (
    EDM as EDM,
)
from sora.diffusion.path import (
    Path as Path,
)
from sora.diffusion.path import (
    Straight as Straight,
)
from sora.diffusion.path import (
    VariancePreserving as VariancePreserving,
)
from sora.diffusion.path import (
    like as like,
)
from sora.diffusion.path import (
    mix as mix,
)
from sora.diffusion.path import (
    velocity as velocity,
)
from sora.diffusion.prediction import (
    check_levels as check_levels,
)
from sora.diffusion.prediction import (
    clean_prediction as clean_prediction,
)
from sora.diffusion.prediction import (
    convert as convert,
)
from sora.diffusion.prediction import (
    determinant as determinant,
)
from sora.diffusion.prediction import (
    noise_prediction as noise_prediction,
)
from sora.diffusion.prediction import (
    solve as solve,
)
from sora.diffusion.prediction import (
    v_prediction as v_prediction,
)
from sora.diffusion.prediction import (
    velocity_prediction as velocity_prediction,
)
from sora.diffusion.samplers import Draw as Draw
from sora.diffusion.samplers import Predict as Predict
from sora.diffusion.samplers import Sampler as Sampler
from sora.diffusion.samplers import adams_bashforth as adams_bashforth
from sora.diffusion.samplers import euler as euler
from sora.diffusion.samplers import heun as heun
from sora.diffusion.samplers import heun_steps as heun_steps
from sora.diffusion.samplers import midpoint as midpoint
from sora.diffusion.samplers import runge_kutta as runge_kutta
from sora.diffusion.stochastic import churn as churn
from sora.diffusion.stochastic import restart as restart
from sora.diffusion.weighting import (
    constant_weight as constant_weight,
)
from sora.diffusion.weighting import (
    cosine_map_weight as cosine_map_weight,
)
from sora.diffusion.weighting import (
    min_snr_weight as min_snr_weight,
)
from sora.diffusion.weighting import (
    velocity_weight as velocity_weight,
)
