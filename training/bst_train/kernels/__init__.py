"""The causal long convolutions of BST and GSS layers.

Every kernel is a module with

  forward(u [B, L, D], state)            -> y [B, L, C, D], state behind
  block_ends(u [B, L, D], state, W)      -> y [B, L / W, C, D] at the last token of every block

where y is what C filters per feature make of u and its past, skip d·u included. States are tensors
whose first dimension is the row, zeros (or None for all rows) where a document starts; what comes
back is detached. Everything is float32, and must be called outside autocast. Parameters have the
names and shapes of the checkpoint.
"""

from __future__ import annotations

import dataclasses
from typing import Collection, Optional

from torch import nn

from ..config import SsmConfig
from . import init
from .diagonal import Dss, S4d
from .dplr import S4
from .explicit import ExplicitFilter
from .mimo import S5


# Initialisations by kernel, where there is a choice; the first is the usual one.
INITS = {"s4d": init.S4D_INITS, "dss": init.DSS_INITS}


@dataclasses.dataclass(frozen=True)
class SsmOptions:
    """What a layer's configuration leaves open about its SSM."""

    init: str = ""          # the name of an initialisation; empty: the kernel's usual one
    with_b: bool = False    # s4d has its optional input vector, whatever the initialisation
    taps: bool = False      # explicit has free taps instead of the positional parametrisation

    @staticmethod
    def of_init(ssm: Optional[SsmConfig], initial: str) -> "SsmOptions":
        """With that initialisation where the layer's kernel knows it."""
        known = ssm is not None and initial in INITS.get(ssm.kernel, ())
        return SsmOptions(init=initial if known else "")

    @staticmethod
    def of_tensors(names: Collection[str], layer: int) -> "SsmOptions":
        """The options of a model whose tensors, or parameters, have these names."""
        prefix = f"layers.{layer}.ssm"
        return SsmOptions(with_b=f"{prefix}.b" in names, taps=f"{prefix}.filter" in names)


def make_kernel(
    config: SsmConfig, filters: int, features: int, options: SsmOptions
) -> nn.Module:
    """C = `filters` new convolutions for each of D = `features` inputs."""
    if config.kernel == "s4d":
        return S4d(filters, features, config, options.init or init.S4D_INITS[0], options.with_b)
    if config.kernel == "dss":
        return Dss(filters, features, config, options.init or init.DSS_INITS[0])
    if config.kernel == "s4":
        return S4(filters, features, config)
    if config.kernel == "s5":
        return S5(filters, features, config)
    assert config.length is not None
    return ExplicitFilter(filters, features, config.length, options.taps)
