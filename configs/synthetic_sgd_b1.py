"""SGD with batch size one on synthetic data (Zhu et al. 2024, Fig. 5).

Claims: the loss of a batch rises in a step whose lr is above the critical lr of that batch; spikes of the training loss come with such steps.
Results: docs/claims.md.

    python -m experiments.main --config=configs/synthetic_sgd_b1.py            # two-layer network, rank-2 target
    python -m experiments.main --config=configs/synthetic_sgd_b1.py:smoke      # seconds

From the paper: a two-layer network, synthetic data, SGD with batch size one. Everything else is our choice: y = x_1 x_2 in 20
dimensions, 128 points, width 1024, and three lrs, in multiples of the critical lr of the whole training set. The critical lr of a
single example is about a fifth of it; at 0.5 the run diverges.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "smoke"):
        raise ValueError(f"variant {variant!r}; allowed: full, smoke")
    c = default.get_config()
    c.title = "SGD, batch size 1, two-layer network"
    c.steps = 2000
    c.members.seed = tuple(range(500, 510))
    c.data.name = "synthetic"
    c.data.by_seed = True
    c.data.target_encoding = "value"
    c.data.scaling = "none"
    c.data.test_size = 256
    c.data.synthetic.dimension = 20
    c.model.depth = 2
    c.optimizer.batch_size = 1
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (0.1, 0.15, 0.2)
    c.measure.top_k = 1
    c.measure.loss_batch_after_every = 1
    c.measure.lambda_max_train_every = 20
    c.measure.loss_test_every = 20
    c.run.chunk_steps = 200
    c.run.checkpoint_every = 1000
    c.claims = ("exceedance_predicts_rise", "spikes_have_exceedances_at_batch_one")
    if variant == "smoke":
        c.steps = 30
        c.data.train_size = 16
        c.data.test_size = 16
        c.model.width = 32
        c.members.seed = (0, 1)
        c.run.chunk_steps = 10
        c.run.checkpoint_every = 10
    return c
