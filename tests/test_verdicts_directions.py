"""Claims on the directions of a rise, on records with a known answer."""

import doctest

import numpy as np
import pytest

from experiments import verdicts
from experiments.verdicts import directions
from tests.small_records import SGD, finding_of, with_modes


@pytest.mark.parametrize(
    ("rises", "number"),
    [([1.0, 0, 0, 0], 1), ([0.25] * 4, 4), ([0.89, 0.02, 0.09, 0], 2), ([-1.0, 0, 2.0, 0], 3), ([0.1, 0.1, 0.1, 0.1], 4)],
)
def test_directions_of_rise(rises, number):
    """The last one: the modes hold less than 90 % of a rise of one."""
    modes = np.array([np.ones(4), 1 + np.array(rises)])

    assert directions.directions_of_rise(modes, 0, 1, 1.0) == number


@pytest.mark.parametrize(
    ("of_spikes", "of_others", "few", "fewer"),
    [
        (1, 6, verdicts.REPRODUCED, verdicts.REPRODUCED),
        (2, 2, verdicts.REPRODUCED, verdicts.NOT_REPRODUCED),
        (7, 8, verdicts.NOT_REPRODUCED, verdicts.REPRODUCED),
        (8, 6, verdicts.NOT_REPRODUCED, verdicts.NOT_REPRODUCED),
    ],
)
def test_spikes_need_few_directions_and_fewer_than_other_rises(of_spikes, of_others, few, fewer):
    data = with_modes(of_spikes, of_others)
    alone = finding_of(directions.spikes_need_few_directions, data, SGD)
    compared = finding_of(directions.spikes_need_fewer_directions_than_other_rises, data, SGD)

    assert (alone.verdict, compared.verdict) == (few, fewer)
    assert alone.effect == f"median {of_spikes} directions"
    assert compared.effect.endswith(f"; median {of_spikes} directions; other rises {of_others}")


def test_directions_need_five_seeds_with_spikes():
    data = with_modes(1, 6)
    data["seed"] = ("member", [0, 0, *range(1, data.sizes["member"] - 1)])

    finding = finding_of(directions.spikes_need_few_directions, data, SGD)

    assert finding.verdict == verdicts.NOT_MEASURABLE and finding.effect == "median 1 directions"


def test_directions_without_other_rises():
    data = with_modes(1, 6).isel(step=slice(0, 7))

    assert finding_of(directions.spikes_need_few_directions, data, SGD).verdict == verdicts.NOT_MEASURABLE
    assert finding_of(directions.spikes_need_fewer_directions_than_other_rises, data, SGD).verdict == verdicts.NOT_MEASURABLE


def test_examples_in_docstrings():
    assert not doctest.testmod(directions).failed
