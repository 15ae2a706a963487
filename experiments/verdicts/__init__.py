"""Claims of the source studies, checked on the record of a run or on a sweep: a statement, the effect with its spread, a verdict.

Each file holds a group of claims. Importing the package registers them all.
"""

from experiments.verdicts import accuracies, catapults, conditioning, exceedances, features  # noqa: F401  they register their claims
from experiments.verdicts.registry import (
    NEEDS,
    NEEDS_SOME,
    NOT_REPRODUCED,
    NOT_TESTED,
    OF_RUN,
    OF_SWEEP,
    REPRODUCED,
    RUN,
    SWEEP,
    VERDICTS,
    Finding,
    Verdict,
    claim,
    of_run,
    of_sweep,
)

__all__ = [
    "NEEDS",
    "NEEDS_SOME",
    "NOT_REPRODUCED",
    "NOT_TESTED",
    "OF_RUN",
    "OF_SWEEP",
    "REPRODUCED",
    "RUN",
    "SWEEP",
    "VERDICTS",
    "Finding",
    "Verdict",
    "claim",
    "of_run",
    "of_sweep",
]
