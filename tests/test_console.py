"""What a person sees: tables line up, errors are one line, unknown names get the nearest."""

import pytest

from lae_jax import console, demo
from lae_jax.errors import InputError, unknown


def test_a_table_lines_up():
    lines = console.table(["group", "MAE"], [("1-10", 3.14159), ("total", 12.0)]).splitlines()
    assert lines[2:] == ["1-10    3.14", "total  12.00"] and len({len(line) for line in lines}) == 1


def test_a_door_turns_an_input_error_into_one_line_and_status_2(capsys):
    def main():
        raise InputError("faces.csv is empty")

    with pytest.raises(SystemExit) as exit_:
        console.door(main)
    assert exit_.value.code == 2 and capsys.readouterr().err == "error: faces.csv is empty\n"


def test_unknown_names_the_nearest():
    assert (
        unknown("split", "tset", ["test", "train"]) == "unknown split 'tset'; did you mean 'test'? (known: test, train)"
    )


def report(first, last, sigma):
    return {"group_mae": [first, 5, 5, 5, 5, 5, 5, last], "sigma": sigma}


def test_the_demo_fails_where_the_effect_is_not_there():
    before, after = report(20, 20, 8.0), report(10, 10, 5.0)
    assert demo.shortfalls(before, after, {"represent": 5.0, "classify": 6.0}) == []
    told = demo.shortfalls(before, report(20, 20, 7.0), {"represent": 5.0, "classify": 6.5})
    assert len(told) == 3 and "0.75" in told[0] and "25 %" in told[2]
