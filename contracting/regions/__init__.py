"""What is proved inside a region: contraction of any field over a box or a ball, and the largest ball of that kind."""

from contracting.regions.balls import largest_contracting_ball
from contracting.regions.certification import certify_region, rate_against_radius
from contracting.regions.paths import PathCertificate, StateMetric, certify_paths
from contracting.regions.records import LargestBall, RateProfile, RegionCertificate
from contracting.regions.sets import Ball, Box

__all__ = [
    "Ball", "Box", "LargestBall", "PathCertificate", "RateProfile", "RegionCertificate", "StateMetric", "certify_paths",
    "certify_region", "largest_contracting_ball", "rate_against_radius",
]  # fmt: skip
