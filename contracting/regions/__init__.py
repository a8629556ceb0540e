"""What is proved inside a region: contraction of any field over a box or a ball, and the largest ball of that kind."""

from contracting.regions.balls import largest_contracting_ball
from contracting.regions.certification import certify_region
from contracting.regions.records import LargestBall, RegionCertificate
from contracting.regions.sets import Ball, Box

__all__ = ["Ball", "Box", "LargestBall", "RegionCertificate", "certify_region", "largest_contracting_ball"]
