"""What can be imported from the two packages themselves, and that nothing of these kinds is left out."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import contracting
import equilibrium
from contracting import Activation, BoundFlow, ContractingError, Flow, Method, Metric, default_solvers
from contracting.activations.base import Curved, PiecewiseLinear
from equilibrium import EquilibriumLayer, Parameterization

CONTRACTING = """
solve Stop Solution SolveError Status Trace EquilibriumProblem Implicit Unrolled TorchDiffEqAdjoint
Method Iteration State Family Activation Curved PiecewiseLinear Slopes LinearMap Metric BoundFlow Flow VectorField
certify report check find_metric fixed_input_convergence RateFinder Candidate Certificate CertificateError Claim
simulate simulate_pairs track tracking_bound carry_ball decay_rate sampled_rate Energy
FiringRate Hopfield ForwardBackwardFlow PeacemanRachfordFlow DrivenFlow NeuralFlow InputFlow LinearFlow
Dense CircularConvolution WeightedL1 WeightedL2 WeightedLinf FullP ADMISSIBLE activation_named as_activation
default_solvers register_solver register_activation register_finder
"""
EQUILIBRIUM = """
LBEN LBENConv2d ContractiveConv2d MultiScaleConv2d EquilibriumLayer FixedIterations FailedRows Stop Implicit
Parameterization DenseParameterization Contractive Monotone MonDEQ Unconstrained Weights NetworkWeights explicit_weights
train certified_lipschitz attained_lipschitz certified_radius pairwise_lipschitz lipschitz_report check_lipschitz
from_sequential from_residual from_weights load_reference save_reference
"""
# Classes that only others of the library are made of: named here, so that leaving one out is a decision.
INSIDE = {
    "Relay", "StuckError", "ConvolutionalMonotone", "ConvolutionalContractive", "MultiScaleMonotone", "ReadoutMonotone",
    "ConvolutionalLayer", "Explicit", "ImageParameterization",
}  # fmt: skip


def everything() -> set[type]:
    """Every public class of both packages."""
    found = set()
    for package in (contracting, equilibrium):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            found |= {value for _, value in inspect.getmembers(importlib.import_module(info.name), inspect.isclass)}
    ours = {kind for kind in found if kind.__module__.startswith(("contracting.", "equilibrium."))}
    return {kind for kind in ours if not kind.__name__.startswith("_")}


@pytest.mark.parametrize(("package", "names"), [(contracting, CONTRACTING), (equilibrium, EQUILIBRIUM)])
def test_the_face_has_these_names(package: object, names: str) -> None:
    assert not set(names.split()) - set(package.__all__)  # type: ignore[attr-defined]


def test_no_concrete_activation_method_metric_or_error_is_left_out() -> None:
    ours = {k for k in everything() if k.__module__.startswith("contracting.") and not inspect.isabstract(k)}
    concrete = {k.__name__ for k in ours if issubclass(k, Activation | Method | Metric | ContractingError)} - INSIDE
    assert len(concrete) > 35
    assert sorted(concrete - set(contracting.__all__)) == []
    assert {Curved.__name__, PiecewiseLinear.__name__} <= set(contracting.__all__)


def test_no_settings_of_a_flow_are_left_out() -> None:
    flows = {k for k in everything() if "bind" in vars(k) and not issubclass(k, Method | BoundFlow) and k is not Flow}
    assert len(flows) >= 6 and not {k.__name__ for k in flows} - set(contracting.__all__)


def test_networks_reach_every_solver_layer_and_parameterisation() -> None:
    assert not {type(method).__name__ for method in default_solvers().values()} - set(equilibrium.__all__)
    kinds = {k.__name__ for k in everything() if issubclass(k, EquilibriumLayer | Parameterization)}
    assert not kinds - set(equilibrium.__all__) - INSIDE


@pytest.mark.parametrize("package", ["contracting", "equilibrium"])
def test_a_star_imports_what_is_listed_and_no_module(package: str) -> None:
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)
    assert len(names) > 50 and not [name for name, value in names.items() if inspect.ismodule(value)]
