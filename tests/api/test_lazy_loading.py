"""The face of the package: every public name is there, and loaded on first use."""

from itertools import permutations

import pytest

import fastvsock
from support import python

LOADED = "print(*(name for name in sys.modules if name == 'fastvsock' or name.startswith('fastvsock.')))"


def test_importing_the_package_loads_nothing_of_the_rest() -> None:
    assert python(f"import sys, fastvsock; {LOADED}") == ["fastvsock"]
    assert set(python(f"import sys, fastvsock; dir(fastvsock); {LOADED}")) == {"fastvsock", "fastvsock.errors"}
    assert set(python(f"import sys, fastvsock; fastvsock.PortError; {LOADED}")) == {"fastvsock", "fastvsock.errors"}


def test_everything_public_is_listed_and_there() -> None:
    listed = python("import fastvsock; print(*dir(fastvsock))")
    assert set(fastvsock.__all__) <= set(listed)
    assert "__version__" in listed
    assert listed == sorted(listed)
    for name in fastvsock.__all__:
        assert getattr(fastvsock, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'fastvsock' has no attribute 'teleport'"):
        fastvsock.teleport  # noqa: B018
    assert not hasattr(fastvsock, "teleport")


@pytest.mark.parametrize("order", [*permutations(["connect", "relay", "RelayResult"])], ids=" ".join)
def test_the_functions_are_functions_in_whatever_order_they_are_first_used(order: tuple[str, ...]) -> None:
    used = "; ".join(f"fastvsock.{name}" for name in order * 2)
    code = f"import fastvsock; {used}; print(*(type(getattr(fastvsock, name)).__name__ for name in {order}))"
    kinds = dict(zip(order, python(code), strict=True))
    assert kinds == {"connect": "function", "relay": "function", "RelayResult": "type"}


def test_relay_is_a_function_however_it_is_imported() -> None:
    first, second = "from fastvsock import connect, relay", "from fastvsock import relay"
    assert python(f"{first}; print(type(relay).__name__)") == ["function"]
    assert python(f"{second}\n{second}\nprint(type(relay).__name__)") == ["function"]
    assert python(f"import fastvsock.runcvm_vsock_connect; {second}; print(type(relay).__name__)") == ["function"]
