"""The ODE-based layer: the output of a network is where a contracting neural ODE comes to rest.

Trained on handwritten digits with torchdiffeq underneath, then solved by an operator splitting: the same weights give
the same outputs and the same gradients, because both solve the same problem to the same residual.
"""

import torch

from contracting.plots import new_axes
from contracting.plots.style import BLUE, SEEN, figure_of, finish
from equilibrium import LBEN, PeacemanRachford, Stop, TorchDiffEq, train
from equilibrium.files import output_directory, write_figure
from equilibrium.training.data import digits, subset

torch.manual_seed(0)
dataset = subset(digits(), train=300, test=200)
ode = LBEN(dataset.features, 20, dataset.classes, lipschitz=5.0, solver=TorchDiffEq("dopri5"), stop=Stop(rtol=1e-4))
record = train(ode, dataset, epochs=3, learning_rate=0.05)
print(f"test error {record.epochs[-1].test_error:.1f} % after {len(record.epochs)} epochs through the ODE")

exact = LBEN(dataset.features, 20, dataset.classes, lipschitz=5.0, solver=PeacemanRachford(), stop=Stop(rtol=1e-10))
exact.load_state_dict(ode.state_dict())
exact, x = exact.double().requires_grad_(False), dataset.test_inputs[:50].double()
residuals, differences = torch.logspace(-2, -7, 6).tolist(), []
for rtol in residuals:
    layer = LBEN(dataset.features, 20, dataset.classes, lipschitz=5.0, solver=TorchDiffEq(), stop=Stop(rtol=rtol))
    layer.load_state_dict(ode.state_dict())
    output = layer.double().requires_grad_(False)(x)
    differences.append(float((output - exact(x)).norm(dim=-1).max() / exact(x).norm(dim=-1).max()))
    print(f"asked for a residual of {rtol:.0e}: outputs differ from the splitting's by {differences[-1]:.1e}")

axes = new_axes()
axes.loglog(residuals, differences, color=BLUE, marker="o", label="torchdiffeq against splitting")
axes.loglog(residuals, residuals, color=SEEN, linestyle=":", label="difference = residual")
axes.invert_xaxis()
finish(axes, x="relative residual asked for", y="relative difference of outputs", title="An ODE and a splitting agree")
write_figure(output_directory("out") / "ode-layer.png", figure_of(axes), dpi=150)
