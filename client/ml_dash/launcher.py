"""What the launcher of a job says of this process: which rank it is, and in which attempt of the job."""

from __future__ import annotations

from ml_dash.errors import Code, error
from ml_dash.reach import said_by_environment

RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
"""Where a rank is looked for, in this order: torchrun and whoever does as it does, Slurm, Open MPI, PMIx, PMI."""
ATTEMPTS = (
    ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)
"""The run's id and how often it was started again, of each launcher; under Slurm torchrun begins to count anew."""
ONLY = "0"
"""The attempt of several ranks whom no launcher tells more."""


def rank_of(name: str, world_size: int) -> int:
    """Which rank this process is, where its caller does not say it. Raises INVALID_ARGUMENT where nobody does."""
    if world_size == 1:
        return 0
    said = said_by_environment(RANKS)
    for variable in RANKS:
        if said.get(variable, "").isdecimal():
            return int(said[variable])
    what = f"checkpoint({name!r}, world_size={world_size}) is not told which rank this process is"
    raise error(Code.INVALID_ARGUMENT, what, f"pass rank=, or start it by what sets {RANKS[0]} or {RANKS[1]}")


def attempt_of() -> str:
    """The launcher's attempt: the ids and counts that it gives all ranks of one start alike."""
    said = said_by_environment(name for names in ATTEMPTS for name in names)
    parts = []
    for names in ATTEMPTS:
        if said.get(names[0]):
            parts += [said[name] for name in names[:-1] if said.get(name)]
            parts.append(said.get(names[-1]) or "0")
    return ".".join(parts).replace("/", "-") or ONLY
