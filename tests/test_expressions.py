"""Expressions over columns: what they compute, and that they compute nothing else."""

import numpy as np
import pandas as pd
import pytest

from deepdisc.errors import InputError
from deepdisc.expressions import evaluate, select

TABLE = pd.DataFrame(
    {
        "mag": [18.0, 22.5, np.nan, 25.0],
        "type": [3, 6, 3, 8],
        "kind": ["star ", "galaxy", "qso", "galaxy"],
        "good": [True, False, True, True],
        "flux-r": [1.0, 2.0, 3.0, 4.0],
        "flux": [np.array([i, 10.0 * i]) for i in range(4)],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mag < 23", [True, True, False, False]),
        ("18 <= mag < 22.5", [True, False, False, False]),
        ("type in [3, 8] and not mag < 20", [False, False, True, True]),
        ("type not in (3,)", [False, True, False, True]),
        ("kind == 'star' or kind in ['qso']", [True, False, True, False]),
        ("good", [True, False, True, True]),
        ("~good | (type == 8)", [False, True, False, True]),
        ("(type & 2) == 2", [True, True, True, False]),
        ("isnan(mag)", [False, False, True, False]),
        ("`flux-r` > 2", [False, False, True, True]),
        ("flux[1] >= 20", [False, False, True, True]),
        ("true", [True] * 4),
    ],
)
def test_conditions(text, expected):
    np.testing.assert_array_equal(select(text, TABLE, "here"), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 ** (-type)", 10.0 ** -TABLE["type"].to_numpy()),
        ("where(good, `flux-r`, -1)", [1, -1, 3, 4]),
        ("-2.5 * log10(flux[1] + 1) + 25", -2.5 * np.log10(10 * np.arange(4) + 1) + 25),
        ("type % 2 + type // 2 - +1", [1, 2, 1, 3]),
        ("hypot(3, 4)", [5] * 4),
        ("7", [7] * 4),
    ],
)
def test_arithmetic(text, expected):
    np.testing.assert_allclose(evaluate(text, TABLE, "here"), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mga < 3", "here: there is no column 'mga' .*the nearest is 'mag'"),
        ("mag <", "here: cannot understand 'mag <'"),
        ("type == '3'", "compares numbers with text"),
        ("kind in [1, 2]", "compares text with numbers"),
        ("mag is None", "is"),
        ("flux[7] > 0", "has no element 7"),
        ("__import__('os').system('x')", "no function"),
        ("mag.values", "not allowed"),
        ("(lambda: 1)()", "no function"),
        ("[m for m in mag]", "not allowed"),
        ("open('x')", "no function 'open'; there are abs"),
        ("9 ** 9 ** 9 ** 9 > 10 ** 400000000 and type == 99999999999999999999", "is no number"),
        ("where(mag, out=type)", "no function"),
        ("kind + 1", "cannot compute"),
        ("f'{mag}'", "not allowed"),
    ],
)
def test_everything_else_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        select(text, TABLE, "here")


def test_a_number_is_no_condition():
    with pytest.raises(InputError, match="'mag' is not a condition such as mag < 22"):
        select("mag", TABLE, "here")
