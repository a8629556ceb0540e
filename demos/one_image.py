"""What is proved around one image: three proved radii beside an attack, and the neurons that the proof has to split.

Within a small radius every neuron keeps its side of the kink, and the network is affine. At the proved radius some may
change it: a local constant has to hold for all their slopes, and branch and bound looks at their sides one by one.
"""

from dataclasses import replace

import torch
from matplotlib.figure import Figure

from contracting.plots.style import BLUE, HALF_WIDTH, ORANGE, SEEN, SKY, VERMILION, finish
from equilibrium import LBEN, LocalSearch, certified_radius, from_weights, local_lipschitz, pairwise_lipschitz, train
from equilibrium.attacks import smallest_perturbation
from equilibrium.files import output_directory, write_figure
from equilibrium.training.data import digits, subset

dataset = subset(digits(), train=600, test=100)
torch.manual_seed(0)
layer = LBEN(dataset.features, 20, dataset.classes)
train(layer, dataset, epochs=4)
layer = layer.double().requires_grad_(False)
inputs = dataset.test_inputs.double()
bounds = (float(inputs.min()), float(inputs.max()))  # of a pixel: nothing outside is an image

image = inputs[layer(inputs).argmax(-1) == dataset.test_labels][:1]
label, constants = layer(image).argmax(-1), pairwise_lipschitz(layer)
search = LocalSearch(accuracy=0.01)
by_global = float(certified_radius(layer, image, label, constants))
by_local = float(certified_radius(layer, image, label, constants, local=search, bounds=bounds))
search = replace(search, branches=100)
complete = float(certified_radius(layer, image, label, constants, local=search, bounds=bounds))
attack = smallest_perturbation(layer, image, label, bounds=bounds, steps=200)
fooled, other = float(attack.sizes), int(layer(attack.inputs).argmax(-1))
radii = {"one constant": by_global, "local constants": by_local, "branch and bound": complete, "attack": fooled}
print("radius by", ", ".join(f"{name} {radius:.3f}" for name, radius in radii.items()))

w = layer.weights().dense()  # with v = Wz + Ux + b for an output, bounds of outputs are bounds of pre-activations
inner = from_weights(replace(w, output=w.state.to_dense(), output_bias=w.bias, feedthrough=w.input))
rows = torch.cat([-torch.eye(20), torch.eye(20)]).double()
v, moves = inner(image)[0], local_lipschitz(inner, image, complete, functionals=rows, bounds=bounds).drops[0]
low, high = v - moves[:20], v + moves[20:]
undecided = torch.nonzero((low < 0) & (high > 0)).flatten().tolist()
print(f"{len(undecided)} of 20 neurons are undecided at {complete:.3f}:", *undecided)

figure = Figure(figsize=(HALF_WIDTH, 4.2), layout="constrained")
title = f"A {int(label)}: proved to {complete:.2f}, taken for a {other} at {fooled:.2f}"
above, below = figure.subplots(2, 1, height_ratios=(4, len(undecided)))
above.barh(range(0, -4, -1), radii.values(), 0.6, color=(SKY, BLUE, BLUE, VERMILION))
finish(above, x="radius (ℓ2, normalised pixels)", y="", title=title, legend=False)
above.set_yticks(range(0, -4, -1), [f"{name} {radius:.2f}" for name, radius in radii.items()])
title = f"{len(undecided)} of 20 neurons may change side within {complete:.2f}"
for place, neuron in enumerate(undecided):
    below.plot([low[neuron], high[neuron]], [place] * 2, color=ORANGE, linewidth=4, solid_capstyle="butt")
    below.plot(v[neuron], place, "o", color="black", markersize=3)
below.axvline(0, color=SEEN, linewidth=1)
finish(below, x="pre-activation: at the image, and proved range", y="neuron", title=title, legend=False)
below.set_yticks(range(len(undecided)), undecided)
below.invert_yaxis()
write_figure(output_directory("out") / "one-image.png", figure, dpi=250)
