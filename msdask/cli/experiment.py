"""`msdask experiment`: a grid of models over repeated splits, from a TOML file to a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from msdask.cli.numbers import COUNT, NATURAL
from msdask.cli.options import Quiet
from msdask.cli.terminal import Scheduler, Workers, open_client, out
from msdask.errors import SpecError
from msdask.extras import require

if TYPE_CHECKING:
    from msdask.training.experiments.experiment import RunOutcome

__all__ = ["experiment"]


def experiment(
    config: Path,
    *,
    ablate: Annotated[int | None, NATURAL] = None,
    plan: Annotated[bool, Parameter(name="--plan")] = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    threads: Annotated[int | None, COUNT] = None,
    tries: Annotated[int, COUNT] = 3,
    quiet: Quiet = False,
) -> int:
    """Train and test a grid of classifiers over repeated splits, and compare them.

    Example: `msdask experiment config.toml --plan`.

    An experiment is a TOML file (docs/classification.md lists what may be in it):

        store = "cohort.zarr"
        output = "experiment"
        relation = "upper_region"
        magnifications = [[20], [10], [5], [10, 5], [20, 10, 5]]
        losses = ["one", "n+1"]
        ratios = [60, 20, 20]

    The tables (table.md, .csv, .tex, .png) and a run folder a run are left in the output folder. The same command goes
    on after a kill: what is finished is not done again.

    Parameters
    ----------
    config
        TOML file; paths in it are relative to it
    ablate
        permute the inputs of each branch of a fusion so often; instead of what the file says
    plan
        only check everything and say which runs there would be
    workers
        processes of this machine, each with one run at a time, and a GPU of its own where there are several
    scheduler
        address of a Dask scheduler (tcp://...) instead; give its workers one thread each, and one GPU each
    threads
        of PyTorch in a run
    tries
        of a run whose worker dies
    """
    require("msdask experiment", module="pytorch_lightning")
    from msdask.storage.files import check_folder_writable
    from msdask.training.experiments.config import ExperimentConfig
    from msdask.training.experiments.experiment import ExperimentPlan, experiment

    if scheduler is not None and workers is not None:
        raise SpecError("--scheduler and --workers are two ways to run: give one of them")
    given = ExperimentConfig.read(config)
    if ablate is not None:
        given = replace(given, ablate=ablate)
    if plan:
        planned = ExperimentPlan(given)
        for row in planned.rows:
            out.print(f"{row.name}: {planned.parameters(row):,} parameters", markup=False)
        splits = len(planned.data.splits)
        out.print(f"{len(planned.rows)} models on {splits} splits: {len(planned.rows) * splits} runs", markup=False)
        return 0
    check_folder_writable(given.output, what="folder of the experiment")
    with open_client(scheduler) as client:
        found = experiment(
            given,
            client=client,
            workers=workers,
            threads=threads,
            tries=tries,
            listener=None if quiet else _print_outcome,
        )
    out.print(found.text, markup=False)
    out.print(f"{found.folder}: table.md, table.csv, table.tex, table.png", markup=False)
    return 0 if found.is_complete else 1


def _print_outcome(outcome: RunOutcome) -> None:
    out.print(str(outcome), markup=False)
