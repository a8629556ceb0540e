"""What every test starts from: one seed, and the folder with MNIST and the reference checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with ``mnist/`` and ``lben-checkpoints/``: CONTRACTING_DATA, or ../shared/data beside the repository."""
    named = os.environ.get("CONTRACTING_DATA")
    if named:
        # A folder that someone named must be there: to skip would hide a typing error.
        if not Path(named).is_dir():
            pytest.fail(f"CONTRACTING_DATA names {named!r}, which is not a folder")
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not beside.is_dir():
        pytest.skip("needs the MNIST files and reference checkpoints: set CONTRACTING_DATA to the folder that has them")
    return beside
