"""Names of the arms of a causal test. Their formulas are in catapult_jax/training/interventions.py."""

# In the order of their codes in a record.
ARMS = ("none", "cap", "remove_overshoot", "placebo", "low_bulk", "shuffled_cap", "mean_cap", "force", "sham")
NEED_CAP_RUN = ("low_bulk", "shuffled_cap", "mean_cap")  # arms that take the lr of a run with the arm cap
