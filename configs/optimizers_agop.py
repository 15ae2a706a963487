"""Eight optimizers, each at its own tuned lr: AGOP alignment against test loss (Zhu et al. 2024).

Claims: over optimizers, AGOP alignment and test performance go together; ours: the alignment predicts the test loss better than the training
loss, lambda_max, the norm of the weights and the number of steps do. Results: docs/claims.md, docs/optimizers.md.

    python -m experiments.sweep --config=configs/optimizers_agop.py:rank2    # also rank3, rank4
    python -m experiments.sweep --config=configs/optimizers_agop.py:rank2,smoke

On images the claims are not measurable: two references that differ in their seed only have an alignment of 0.2 to 0.35 (docs/claims.md asks for 0.5).

Eight optimizers, with batches of 16. Heavy ball and Nesterov have momentum 0.9.
Each has ten seeds at every lr of a grid, in multiples of its own critical lr at initialisation, after it has seen one gradient.
Every run ends at the same training loss. The lr with the smallest mean validation loss counts.

From the paper: the first claim. Everything else is our choice. The grid was chosen on the seeds 0 to 4; the seeds here are fresh.
"""

from ml_collections import ConfigDict

from configs import default, tasks


def get_config(variant: str = "rank2") -> ConfigDict:
    task, words = tasks.split(variant, ("smoke",))
    if task not in tasks.SYNTHETIC:
        raise ValueError(
            f"variant {variant!r}; allowed: one of {', '.join(tasks.SYNTHETIC)}, since two references on images have a low alignment with each other"
        )
    c = default.get_config()
    c.title = f"Optimizers, {task}"
    tasks.choose(c, task)
    c.data.validation_size = 256
    c.steps = 3000
    c.sweep = ("optimizer.name=sgd,heavy_ball,nesterov,adagrad,rmsprop,adam,adamw,adadelta",)
    c.members.seed = tuple(range(540, 550))
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # small ones for heavy ball, large ones for rmsprop
    c.optimizer.batch_size = 16
    c.measure.lambda_max_batch_every = 0
    c.measure.lambda_max_train_every, c.measure.method, c.measure.top_k = 100, "matrix_free", 1
    c.measure.weight_norm_every = 20
    c.measure.loss_test_every = 20
    c.measure.agop_alignment_every = 20
    c.run.chunk_steps = 100
    c.run.checkpoint_every = 1000
    c.claims = ("alignment_over_optimizers", "alignment_is_the_best_predictor")
    if "smoke" in words:
        tasks.smoke(c)
        c.data.validation_size, c.optimizer.batch_size = 10, 5
        c.sweep = ("optimizer.name=sgd,adagrad,adam",)
        c.members.lr, c.measure.loss_test_every, c.measure.agop_alignment_every = (0.1, 0.3), 2, 2
        c.measure.lambda_max_train_every = c.measure.weight_norm_every = 2
    return c
