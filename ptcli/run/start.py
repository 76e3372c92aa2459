"""From an accepted request to a run's end: the checks that need the run directory or a child, then the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptcli.run.signals import signals_raised

if TYPE_CHECKING:
    from ptcli.plan.model import Plan
    from ptcli.request import Accepted
    from ptcli.run.panel import View
    from ptcli.run.rendezvous import Peers
    from ptcli.run.rundir import Status


def start(accepted: Accepted, *, overwrite: bool, view: View) -> Status:
    """Check data and rewards, occupy the run directory, and run the plan to its end, whatever that is.

    Of several nodes the first does all that; the others do as it says.

    Raises:
        RequestError: the request turned out to be wrong; no run was started.
        WorkError: the data are wrong.
    """
    from ptcli.run.nodes import Ended, follow, met

    plan = accepted.plan
    if plan.nodes == 1:
        return _lead(accepted, None, overwrite=overwrite, view=view)
    with met(plan, view) as peers:
        if plan.node:
            return follow(plan, peers, lambda: _prepare(plan, view), view=view)
        status = _lead(accepted, peers, overwrite=overwrite, view=view)
        Ended(status.exit_code or 0, status.cause, status.state).tell(peers)
        return status


def _lead(accepted: Accepted, peers: Peers | None, *, overwrite: bool, view: View) -> Status:
    from ptcli.run.datacheck import check_data
    from ptcli.run.nodes import prepare_others, probe_ports, share_storage
    from ptcli.run.preflight import preflight
    from ptcli.run.rundir import RunDirectory
    from ptcli.run.supervise import supervise

    plan, rundir = accepted.plan, RunDirectory(accepted.plan.output_dir)
    rundir.check(overwrite=overwrite, resume=accepted.resumes, smoke=plan.smoke)
    if peers:
        with signals_raised():
            share_storage(plan, peers, view.show)
            probe_ports(plan, peers, view.show)
    check_data(plan, accepted.sources, view=view)
    preflight(plan, accepted.sources, view=view)
    _prepare(plan, view)
    if peers:
        with signals_raised():
            prepare_others(peers, view.show)
    step, aside = (resumption.step, resumption.aside) if (resumption := accepted.resumption) else (0, ())
    with rundir.prepare(plan, overwrite=overwrite, resume=accepted.resumes, step=step, aside=aside):
        return supervise(plan, rundir, view=view, peers=peers)


def _prepare(plan: Plan, view: View) -> None:
    from ptcli.run.datacheck import tokenize_data

    tokenize_data(plan, view=view)
