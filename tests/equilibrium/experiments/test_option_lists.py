"""Options that hold several values: known answers, and one sentence for each thing that cannot be."""

from __future__ import annotations

import pytest

from contracting.errors import InputError
from equilibrium.experiments.options import numbers, numbers_or_none, words


def test_values_are_read() -> None:
    assert words("--models", " a,b ,, c,", example="a") == ("a", "b", "c")
    assert numbers("--gains", "10, 2.5e-1", example="1", high=10) == (10.0, 0.25)
    assert numbers_or_none("--rates", "none,0,1", example="1", high=1, zero=True) == (None, 0.0, 1.0)


@pytest.mark.parametrize("text", ["", " , ,"])
def test_no_value_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--models must have at least one value, such as a$"):
        words("--models", text, example="a")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a", "separated by commas, got 'a'"), ("0", "lie in"), ("-1", "lie in"), ("nan", "lie in"), ("1", r"\(0, 1\)")],
)
def test_what_is_no_such_number_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=f"--tolerances must .*{said}"):
        numbers("--tolerances", f"0.5,{text}", example="0.1", high=1, high_open=True)
    if text != "1":
        with pytest.raises(InputError, match="--lipschitz must"):
            numbers_or_none("--lipschitz", f"none,{text}", example="none", high=1)


def test_a_value_that_comes_twice_is_refused() -> None:
    """Numbers are compared as numbers, however they are written."""
    with pytest.raises(InputError, match="^--models has a twice; give each value once$"):
        words("--models", "a,b, a", example="a")
    with pytest.raises(InputError, match=r"--gains has 1\.0 twice"):
        numbers("--gains", "1,2,1.0", example="1", high=10)
    for text in ("none,1,none", "1,none,1e0"):
        with pytest.raises(InputError, match=r"--rates has (none|1\.0) twice"):
            numbers_or_none("--rates", text, example="1", high=10)
    assert numbers("--gains", "1,1.5,15e-2", example="1", high=10) == (1.0, 1.5, 0.15)
