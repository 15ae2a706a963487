"""AGOP alignment against test loss over optimizers, and their exceedances as predictors of a rise of the batch loss.

    python -m experiments.sweep --config=configs/optimizers_agop.py:rank2    # also rank3, rank4, and the image tasks
    python -m experiments.sweep --config=configs/optimizers_agop.py:rank2,smoke

Every optimizer that has a rule (heavy ball and Nesterov with 0.9), batches of 16, five seeds at every lr of one grid: multiples of the optimizer's own critical lr at initialisation, after it
has seen one gradient. Every run ends at the same training loss; the alignment and test loss that count are those at the lr with the smallest mean
validation loss.

Measured on 2 CPU cores, rank2, five seeds, 6 min: at the tuned lr the rank correlation of alignment with test loss over the six optimizers is -0.97 [-0.99, -0.94], test
loss 0.138 (rmsprop, adadelta), 0.18 (adamw), 0.23 (sgd), 0.26 (adagrad), 0.28 (adam); rmsprop and adamw at the end of the grid. Precision of
lr > critical lr for a rise of the batch loss, with the base rate: sgd 0.28 (0.27), adagrad 0.26 (0.07), rmsprop 0.46 (0.40), adam 0.77 (0.09), adamw 0.79 (0.08),
adadelta 0.52 (0.47). Recall is 1 without momentum and 0.05 for adam and adamw: nearly all rises of their loss come below the critical lr.
On rank3 and rank4 the rank correlation is -0.97 [-1, -0.92] and -0.92 [-0.99, -0.82].

From the published text: the claim that alignment and test performance go together. Everything else is our choice.
"""

from ml_collections import ConfigDict

from configs import default, tasks


def get_config(variant: str = "rank2") -> ConfigDict:
    task, words = tasks.split(variant, ("smoke",))
    c = default.get_config()
    c.title = f"Optimizers, {task}"
    tasks.choose(c, task)
    c.data.validation_size = 256
    c.steps = 3000 if task in tasks.SYNTHETIC else 1000
    c.sweep = ("optimizer.name=sgd,heavy_ball,nesterov,adagrad,rmsprop,adam,adamw,adadelta",)
    c.members.seed = (0, 1, 2, 3, 4)
    c.members.lr_relative = (0.3, 1.0, 3.0, 10.0)
    c.optimizer.batch_size = 16
    c.measure.loss_after_every = 1
    c.measure.test_every = 20
    c.measure.agop_every = 20
    c.run.chunk_steps = 100
    c.run.checkpoint_every = 1000
    c.claims = ("alignment_over_optimizers", "exceedance_predicts_for_every_optimizer")
    if task in tasks.IMAGES:  # the critical lr of every step and member takes hours on two cores, see docs/optimizers.md
        c.measure.batch_kernel_every = c.measure.loss_after_every = 0
        c.claims = ("alignment_over_optimizers",)
    if "smoke" in words:
        tasks.smoke(c)
        c.data.validation_size, c.optimizer.batch_size = 10, 5
        c.sweep = ("optimizer.name=sgd,adagrad,adam",)
        c.members.lr_relative, c.measure.test_every, c.measure.agop_every = (0.1, 0.3), 2, 2
    return c
