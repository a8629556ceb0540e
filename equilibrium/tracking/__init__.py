"""Equilibria of inputs that arrive frame by frame: warm starts, steps known beforehand, certified errors."""

from equilibrium.tracking.certificate import TrackingCertificate, check_tracking
from equilibrium.tracking.steps import FixedTracking, TrackedOutput, TrackedState
from equilibrium.tracking.tracker import TrackedFrame, Tracker, track_inputs

__all__ = [
    "FixedTracking", "TrackedFrame", "TrackedOutput", "TrackedState", "Tracker", "TrackingCertificate",
    "check_tracking", "track_inputs",
]  # fmt: skip
