"""The house stays within its sizes: rooms, functions, parameters, export cells, names (measured by tools/sizes.py)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import sizes

# What is still over the budget: tables and records of fields, classes whose methods are patched on in turn, and rooms
# that are not yet small enough. These numbers may fall and never rise.
LEFT = {
    "attribution": 14,
    "commands": 1,
    "core": 8,
    "data": 5,
    "losses": 2,
    "maskers": 20,
    "metrics": 6,
    "models": 11,
    "study": 2,
    "training": 14,
}


@pytest.mark.parametrize("room", sizes.rooms())
def test_a_room_keeps_its_budget(room):
    over = sizes.over(room)
    assert len(over) <= LEFT[room], "\n".join(over)


def test_no_function_has_more_than_40_lines_and_three_take_more_than_six_parameters():
    found = [f for p in (sizes.ROOT / "lib").glob("*/*.py") for f in sizes.functions(p)]
    assert [name for name, lines, _ in found if lines > 40] == []
    assert len([name for name, _, parameters in found if parameters > 6]) <= 3


def test_a_public_name_stands_once():
    twice = {n: where for n, where in sizes.public_names().items() if len(where) > 1}
    assert twice == {}


def test_few_names_are_public():
    assert len(sizes.public_names()) <= 740
