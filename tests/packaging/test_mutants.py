"""What `make mutants` reads still fits the repository: modules, their tests, and the lines that explanations name."""

import tomllib

import pytest

from mutants.table import PACKAGE, TESTS
from support import ROOT

EXPLAINED = tomllib.loads((ROOT / "tests" / "mutants" / "equivalent.toml").read_text()).get("mutant", [])


@pytest.mark.parametrize("module", TESTS)
def test_a_module_and_its_tests_are_there(module: str) -> None:
    assert (ROOT / PACKAGE / module).is_file()
    assert len(set(TESTS[module])) == len(TESTS[module])
    assert [name for name in TESTS[module] if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("entry", EXPLAINED, ids=lambda entry: f"{entry['module']}: {entry['line']}")
def test_an_explained_mutant_changes_a_line_that_is_there(entry: dict[str, object]) -> None:
    source = (ROOT / PACKAGE / str(entry["module"])).read_text()
    assert " ".join(str(entry["line"]).split()) in " ".join(source.split())  # of several lines, one is made
    assert entry["reason"]
    assert entry["changed"]
