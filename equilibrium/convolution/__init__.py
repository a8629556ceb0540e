"""Equilibrium networks on images: circular convolutions, certified as they run."""

from equilibrium.convolution.base import ImageParameterization
from equilibrium.convolution.contractive import ConvolutionalContractive
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.layer import ContractiveConv2d, ConvolutionalLayer, LBENConv2d
from equilibrium.convolution.parameterization import ConvolutionalMonotone, MetricShape
from equilibrium.convolution.readout import ReadoutMonotone
from equilibrium.convolution.scales import MultiScaleConv2d, MultiScaleMonotone
from equilibrium.convolution.weights import ConvolutionalWeights

__all__ = [
    "ContractiveConv2d", "ConvolutionalContractive", "ConvolutionalLayer", "ConvolutionalMonotone",
    "ConvolutionalWeights", "Geometry", "ImageParameterization", "LBENConv2d", "MetricShape", "MultiScaleConv2d",
    "MultiScaleMonotone", "ReadoutMonotone",
]  # fmt: skip
