"""Claims of the source studies, tested on the record of a run or on a sweep: a statement, the effect with its spread, a verdict.

Each file has a group of claims. Importing the package registers them all.
"""

from experiments.verdicts import (  # noqa: F401  they register their claims
    accuracies,
    batch_sizes,
    catapults,
    causes,
    conditioning,
    exceedances,
    features,
    optimizers,
    predictors,
    sgd_spikes,
)
from experiments.verdicts.registry import (
    CLAIMS,
    NEEDS,
    NEEDS_SOME,
    NOT_MEASURABLE,
    NOT_REPRODUCED,
    NOT_TESTED,
    OF_RUN,
    OF_SWEEP,
    OURS,
    PARTLY,
    REPRODUCED,
    RUN,
    SWEEP,
    VERDICTS,
    Finding,
    Run,
    Verdict,
    claim,
    of_run,
    of_sweep,
    read_run,
)

__all__ = [
    "CLAIMS",
    "NEEDS",
    "NEEDS_SOME",
    "NOT_MEASURABLE",
    "NOT_REPRODUCED",
    "NOT_TESTED",
    "OF_RUN",
    "OF_SWEEP",
    "OURS",
    "PARTLY",
    "REPRODUCED",
    "RUN",
    "SWEEP",
    "VERDICTS",
    "Finding",
    "Run",
    "Verdict",
    "claim",
    "of_run",
    "of_sweep",
    "read_run",
]
