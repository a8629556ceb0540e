"""What is proved of a network around one input: local constants, and radii within which no class changes."""

from equilibrium.local.constants import LocalLipschitz, local_lipschitz
from equilibrium.local.proof import ClassProof, LocalSearch, certified_within
from equilibrium.local.radius import certified_radius

__all__ = ["ClassProof", "LocalLipschitz", "LocalSearch", "certified_radius", "certified_within", "local_lipschitz"]
