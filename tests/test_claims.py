"""Verdicts on records with a known answer."""

import numpy as np
import pytest
import xarray as xr

from configs import cifar_gd, cifar_gd_multi, synthetic_sgd_b1
from experiments import claims


def record(loss, lr, critical, *, top=None, rate=1.67, **more):
    loss, lr, critical = (np.atleast_2d(np.asarray(v, float)) for v in (loss, lr, critical))
    lr, critical = np.broadcast_to(lr, loss.shape), np.broadcast_to(critical, loss.shape)
    arrays = {"loss_batch": loss, "loss_train": loss, "lr": lr, "critical_lr_batch": critical, "lambda_max_batch": 2 / critical}
    arrays |= {"loss_top": loss * 0.99 if top is None else np.atleast_2d(top), "stage": np.zeros(loss.shape, int)}
    arrays |= {"alive": np.isfinite(loss)} | more
    members = {"lr_relative": ("member", np.full(len(loss), rate)), "seed": ("member", np.arange(len(loss)))}
    members["rate"] = members["lr_relative"]
    return xr.Dataset({k: (("member", "step"), v) for k, v in arrays.items()}, members)


FIG3, FIG4, FIG5 = (m.get_config().to_dict() for m in (cifar_gd, cifar_gd_multi, synthetic_sgd_b1))
SPIKE, FALLING = [1.0, 2.0, 4.0, 1.5, 0.9, 0.8], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
DROPS = [1.0, 1.0, 2.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (record(SPIKE, 1.5, DROPS), claims.REPRODUCED),
        (record(SPIKE, 1.5, 1.0), claims.NOT_REPRODUCED),  # lambda_max does not fall
        (record(SPIKE, 1.5, DROPS, top=np.array(SPIKE) * 0.5), claims.NOT_REPRODUCED),  # half of the rise is elsewhere
        (record(FALLING, 1.5, DROPS), claims.NOT_REPRODUCED),
        (record([SPIKE, FALLING], 1.5, DROPS), claims.NOT_REPRODUCED),  # one of two members
        (record(SPIKE, 1.5, DROPS, rate=0.5), claims.NOT_TESTED),
    ],
)
def test_first_catapult(made, verdict):
    assert claims.first_catapult(made, FIG3).verdict == verdict


@pytest.mark.parametrize(
    ("critical", "verdict"),
    [(DROPS, claims.REPRODUCED), ([9.0, 1, 1, 9, 9, 9], claims.NOT_REPRODUCED), ([9.0] * 6, claims.NOT_REPRODUCED)],
)
def test_spikes_are_catapults(critical, verdict):
    found = claims.spikes_are_catapults(record(SPIKE, 1.5, critical), FIG3)
    assert found.verdict == verdict
    assert claims.spikes_are_catapults(record(FALLING, 1.5, critical), FIG3).verdict == claims.NOT_TESTED


def test_catapult_follows_raise():
    loss = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 2.0, 0.2]
    lr = [0.5, 0.5, 3, 3, 3, 3, 6, 6, 6]
    stage = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]])
    critical = [2.0, 2, 2, 4, 4, 4, 4, 9, 9]
    assert claims.catapult_follows_raise(record(loss, lr, critical, stage=stage), FIG4).verdict == claims.REPRODUCED
    quiet = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 0.1, 0.1]
    assert claims.catapult_follows_raise(record(quiet, lr, critical, stage=stage), FIG4).verdict == claims.NOT_REPRODUCED
    assert claims.catapult_follows_raise(record(quiet, lr, critical), FIG4).verdict == claims.NOT_TESTED


def test_exceedance_predicts_rise():
    before = np.ones((1, 20))
    critical = np.where(np.arange(20) % 2, 0.5, 2.0)
    rises = np.where(np.arange(20) % 2, 2.0, 0.5)[None]
    same = record(before, 1.0, critical, loss_batch_after=rises)
    assert claims.exceedance_predicts_rise(same, FIG5).verdict == claims.REPRODUCED
    opposite = record(before, 1.0, critical, loss_batch_after=1 / rises)
    assert claims.exceedance_predicts_rise(opposite, FIG5).verdict == claims.NOT_REPRODUCED
    never = record(before, 1.0, 9.0, loss_batch_after=before * 0.5)
    assert claims.exceedance_predicts_rise(never, FIG5).verdict == claims.NOT_TESTED
