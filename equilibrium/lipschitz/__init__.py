"""Lipschitz constants of equilibrium networks: certified from above, attained from below."""

from equilibrium.lipschitz.bounds import (
    PairwiseLipschitz,
    certified_bound,
    certified_lipschitz,
    pairwise_lipschitz,
)
from equilibrium.lipschitz.branches import Branches
from equilibrium.lipschitz.certificate import Couplings, LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import check_lipschitz
from equilibrium.lipschitz.coupled import Coupled
from equilibrium.lipschitz.elementwise import Elementwise
from equilibrium.lipschitz.finder import BuiltIn, LipschitzFinder
from equilibrium.lipschitz.first_order import FirstOrder
from equilibrium.lipschitz.interior import InteriorPoint
from equilibrium.lipschitz.lmi import MatrixInequality
from equilibrium.lipschitz.lower import PairAscent, PatternSearch, RegionWalk
from equilibrium.lipschitz.pairs import AttainedRatio
from equilibrium.lipschitz.report import (
    LipschitzReport,
    attained_lipschitz,
    lipschitz_report,
    pair_ratio,
    verify_report,
)
from equilibrium.lipschitz.rowwise import RowByRow
from equilibrium.lipschitz.system import LipschitzSystem, lipschitz_system

__all__ = [
    "AttainedRatio", "Branches", "BuiltIn", "Coupled", "Couplings", "Elementwise", "FirstOrder", "InteriorPoint",
    "LipschitzCertificate", "LipschitzFinder", "LipschitzReport", "LipschitzSystem", "MatrixInequality", "Norm",
    "PairAscent", "PairwiseLipschitz", "PatternSearch", "RegionWalk", "RowByRow", "attained_lipschitz",
    "certified_bound", "certified_lipschitz", "check_lipschitz", "lipschitz_report", "lipschitz_system", "pair_ratio",
    "pairwise_lipschitz", "verify_report",
]  # fmt: skip
