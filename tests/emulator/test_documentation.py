"""The examples in the emulator's documentation run as they stand."""

import doctest

from fastvsock import emulator


def test_the_example_of_the_package_runs() -> None:
    result = doctest.testmod(emulator, raise_on_error=True)
    assert result.attempted >= 4
