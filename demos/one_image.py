"""What is proved around one image: its radius by global and by local constants, an attack, and undecided neurons.

Within a small radius every neuron keeps its side of the kink, and the network is affine. The more may change theirs,
the more the inequality has to hold for, and the less it proves.
"""

import torch

from contracting.plots import new_axes
from contracting.plots.style import BLUE, CERTIFIED, SEEN, VERMILION, figure_of, finish
from equilibrium import LBEN, LocalSearch, certified_radius, local_lipschitz, pairwise_lipschitz, train
from equilibrium.attacks import smallest_perturbation
from equilibrium.files import output_directory, write_figure
from equilibrium.training.data import digits, subset

dataset = subset(digits(), train=600, test=100)
torch.manual_seed(0)
layer = LBEN(dataset.features, 30, dataset.classes)
train(layer, dataset, epochs=4)
layer = layer.double().requires_grad_(False)
inputs = dataset.test_inputs.double()
bounds = (float(inputs.min()), float(inputs.max()))  # of a pixel: nothing outside is an image

with torch.no_grad():
    image = inputs[layer(inputs).argmax(-1) == dataset.test_labels][:1]
    label = layer(image).argmax(-1)
constants = pairwise_lipschitz(layer)
by_global = float(certified_radius(layer, image, label, constants))
by_local = float(certified_radius(layer, image, label, constants, local=LocalSearch(accuracy=0.01), bounds=bounds))
attack = smallest_perturbation(layer, image, label, bounds=bounds, steps=200)
fooled = float(attack.sizes)
with torch.no_grad():
    other = int(layer(attack.inputs).argmax(-1))
print(f"radius by global constants {by_global:.3f}, by local ones {by_local:.3f}, smallest attack found {fooled:.3f}")

radii = torch.linspace(0, 1.6 * fooled, 41, dtype=torch.float64)[1:]
rows = torch.eye(dataset.classes, dtype=torch.float64)[label]
found = local_lipschitz(layer, image.repeat(len(radii), 1), radii, functionals=rows, bounds=bounds)
at_attack = int(found.undecided[24])
print(f"{int(found.undecided[0])} of 30 neurons are undecided at a radius of {radii[0]:.3f}, {at_attack} at the attack")

axes = new_axes()
axes.step(radii, found.undecided, color=SEEN, where="post", label="neurons that may change their side")
axes.axvline(by_global, label="certified by global constants", **CERTIFIED)
axes.axvline(by_local, color=BLUE, linewidth=1.6, label="certified by local constants")
axes.axvline(fooled, color=VERMILION, linewidth=1.6, label=f"an attack: {int(label)} is taken for {other}")
finish(axes, x="radius (ℓ2, normalised pixels)", y="neurons", title="One image: what is proved, and what is not")
for place, pixels in ((0.62, image), (0.81, attack.inputs)):
    inset = axes.inset_axes((place, 0.08, 0.17, 0.3))
    inset.imshow(pixels.reshape(8, 8).numpy(), cmap="gray", vmin=bounds[0], vmax=bounds[1])
    inset.set_title("image" if pixels is image else "attacked", fontsize=8)
    inset.set_xticks([])
    inset.set_yticks([])
write_figure(output_directory("out") / "one-image.png", figure_of(axes), dpi=150)
