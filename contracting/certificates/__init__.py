r"""Certified contraction rates of flows, the truth they are compared with, and one checker that all of them must pass.

``certify(flow)`` gives the largest rate that is affordable for the size, ``report(flow)`` every rate beside an upper
bound, ``find_metric(W)`` Condition 1 for any weight, ``fixed_input_convergence(flow)`` what Condition 1 gives to flows
that need not contract. "Contraction" is about any two trajectories under the same input, which may vary in time;
"convergence" is about constant input only.
"""

from contracting.certificates.candidates import Candidate
from contracting.certificates.catalogue import register_finder
from contracting.certificates.certification import (
    Report,
    applicable,
    best_forward_backward_step,
    best_peaceman_rachford_step,
    certificates,
    certify,
    report,
)
from contracting.certificates.checker import check
from contracting.certificates.convergence import check_convergence, fixed_input_convergence
from contracting.certificates.finder import Finder
from contracting.certificates.finders import (
    DiagonalMetric,
    ExplicitMetric,
    GivenMetric,
    InclusionMetric,
    LyapunovMetric,
    PolyhedralMetric,
    RateFinder,
)
from contracting.certificates.lifted.finder import LiftedInequality, with_proofs
from contracting.certificates.lifted.form import LiftedForm
from contracting.certificates.lmi import SectorInequality, VertexInequalities
from contracting.certificates.lure.circle import CircleCriterion
from contracting.certificates.lure.frequencies import frequency_margin
from contracting.certificates.lure.gains import certify_gain, certify_passivity
from contracting.certificates.lure.records import Dissipation, GainCertificate, PassivityCertificate
from contracting.certificates.parabola import ParabolaTest
from contracting.certificates.records import Certificate, CertificateError, Convergence
from contracting.certificates.sweeps import SkewnessSweep, StepSweep, sweep_skewness, sweep_steps
from contracting.certificates.systems import (
    FiringRateSystem,
    HopfieldSystem,
    InclusionSystem,
    LinearSystem,
    System,
    forward_backward_system,
    peaceman_rachford_system,
    system_of,
)
from contracting.certificates.upper_bounds import UpperBound, abscissa_bound, switching_bound, upper_bound
from contracting.certificates.wellposedness import Wellposedness, find_metric, rules_out

__all__ = [
    "Candidate", "Certificate", "CertificateError", "CircleCriterion", "Convergence", "DiagonalMetric", "Dissipation",
    "ExplicitMetric", "Finder", "FiringRateSystem", "GainCertificate", "GivenMetric", "HopfieldSystem",
    "InclusionMetric", "InclusionSystem", "LiftedForm", "LiftedInequality", "LinearSystem", "LyapunovMetric",
    "ParabolaTest", "PassivityCertificate", "PolyhedralMetric", "RateFinder", "Report", "SectorInequality",
    "SkewnessSweep", "StepSweep", "System", "UpperBound", "VertexInequalities", "Wellposedness", "abscissa_bound",
    "applicable", "best_forward_backward_step", "best_peaceman_rachford_step", "certificates", "certify",
    "certify_gain", "certify_passivity", "check", "check_convergence", "find_metric", "fixed_input_convergence",
    "forward_backward_system", "frequency_margin", "peaceman_rachford_system", "register_finder", "report",
    "rules_out", "sweep_skewness", "sweep_steps", "switching_bound", "system_of", "upper_bound", "with_proofs",
]  # fmt: skip
