"""Arms of a sweep and their differences."""

import numpy as np

from experiments.verdicts import sweep_rows

ROWS = [
    {"arm": arm, "lr_given": lr, "seed": seed, "finished": True, "active": True, "loss": lr + seed + (arm == "b")}
    for arm in ("a", "b")
    for lr in (0.1, 0.2, 0.3)
    for seed in (0, 1)
]


def test_rows_by_arm_keeps_the_order():
    arms = sweep_rows.rows_by_arm(ROWS, ("arm", "seed"))

    assert [*arms] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [row["lr_given"] for row in arms["b", 1]] == [0.1, 0.2, 0.3]


def test_tuned_arms_take_the_lr_of_the_smallest_mean():
    arms = sweep_rows.tuned_arms(ROWS, ("arm",), "loss", finished=True)

    assert {arm: {row["lr_given"] for row in rows} for arm, rows in arms.items()} == {("a",): {0.1}, ("b",): {0.1}}


def test_tuned_arms_need_every_seed_of_an_lr():
    unfinished = [row | {"finished": (row["lr_given"], row["seed"]) != (0.1, 1)} for row in ROWS]
    diverged = [
        row | {"active": row["lr_given"] != 0.2, "loss": row["loss"] if row["lr_given"] > 0.1 else np.nan} for row in ROWS
    ]

    lr_of = lambda rows, **options: sweep_rows.tuned_arms(rows, ("arm",), "loss", **options)[("a",)][0]["lr_given"]

    assert lr_of(unfinished, finished=True) == 0.2 and lr_of(unfinished, finished=False) == 0.1
    assert lr_of(diverged, finished=False) == 0.3
    assert sweep_rows.tuned_arms([row | {"active": False} for row in ROWS], ("arm",), "loss", finished=False) == {}


def test_at_the_edge_of_the_grid():
    remarks = [sweep_rows.at_the_edge(ROWS, lr) for lr in (0.1, 0.2, 0.3)]

    assert remarks == [", an end of the grid", "", ", an end of the grid"]


def test_paired_takes_the_seeds_of_both():
    arms = {("a",): [{"seed": 0, "x": 5.0}, {"seed": 1, "x": 7.0}], ("b",): [{"seed": 1, "x": 4.0}, {"seed": 2, "x": 9.0}]}

    assert sweep_rows.paired(arms, ("a",), ("b",), "x") == [3.0]
