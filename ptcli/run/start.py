"""From an accepted request to a run's end: the checks that need the run directory or a child, then the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptcli.errors import RequestError

if TYPE_CHECKING:
    from ptcli.request import Accepted
    from ptcli.run.panel import View
    from ptcli.run.rundir import Status


def start(accepted: Accepted, *, overwrite: bool, view: View) -> Status:
    """Check data and rewards, occupy the run directory, and run the plan to its end, whatever that is.

    Raises:
        RequestError: the request turned out to be wrong; no run was started.
        WorkError: the data are wrong.
    """
    from ptcli.run.datacheck import check_data, tokenize_data
    from ptcli.run.preflight import preflight
    from ptcli.run.rundir import RunDirectory
    from ptcli.run.supervise import supervise

    plan, rundir = accepted.plan, RunDirectory(accepted.plan.output_dir)
    if plan.nodes > 1:
        raise RequestError("launch.nodes: runs on more than one node can be planned (--dry-run) but not started yet")
    rundir.check(overwrite=overwrite, resume=accepted.resumes, smoke=plan.smoke)
    check_data(plan, accepted.sources, view=view)
    preflight(plan, accepted.sources, view=view)
    tokenize_data(plan, view=view)
    step, aside = (resumption.step, resumption.aside) if (resumption := accepted.resumption) else (0, ())
    with rundir.prepare(plan, overwrite=overwrite, resume=accepted.resumes, step=step, aside=aside):
        return supervise(plan, rundir, view=view)
