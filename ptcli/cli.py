"""The command line: commands of a few lines each, and the only place that prints errors and picks exit codes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ptcli.errors import Interrupted, Problem, PtcliError, RequestError, WorkError
from ptcli.request import Accepted, Request, accept, plan_request

if TYPE_CHECKING:
    from ptcli.data.check import Depth
    from ptcli.data.request import DataRequest
    from ptcli.merge.model import MergePlan
    from ptcli.merge.verifier import Verifier
    from ptcli.plan.model import Plan

app = typer.Typer(
    name="ptcli",
    help="Post-train a language model from one YAML recipe: checked, planned, supervised.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The YAML recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override any key of the recipe, with dots: training.learning_rate=1e-6, data.train.0.path=my.jsonl.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout, nothing else there.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show ptcli's version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from ptcli import __version__

        typer.echo(f"ptcli {__version__}")
        raise typer.Exit


@app.command(short_help="Train a model, and run its rollout server beside it.")
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: what would be written and run. Starts nothing.")
    ] = False,
    assume_gpus: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="With --dry-run: plan for another machine, as 8, 8x80GiB or 2x8x80GiB."),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="The same recipe, shrunk to run here in a minute or two: no GPU, no hub."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest whole checkpoint in the output directory.")
    ] = False,
    resume_from: Annotated[
        str | None, typer.Option("--resume-from", metavar="PATH", help="Go on from that checkpoint.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away what an earlier run left in the output directory.")
    ] = False,
    launcher: Annotated[
        Literal["local", "slurm"],
        typer.Option(help="Run here, or submit a job to Slurm (launch.slurm) and return."),
    ] = "local",
    node_rank: Annotated[
        int | None, typer.Option("--node-rank", metavar="N", help="Which of several nodes this is, from 0 (NODE_RANK).")
    ] = None,
    master: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the nodes meet: node 0 (MASTER_ADDR, MASTER_PORT)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model; for online methods, also start and supervise the vLLM server.

    Examples:

      ptcli train recipes/grpo.yaml --dry-run --assume-gpus 8x80GiB

      ptcli train recipes/sft.yaml --smoke

      ptcli train recipes/dpo.yaml training.beta=0.05 output_dir=runs/dpo-05

    Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and end the run; this goes on from there:

      ptcli train recipes/sft.yaml --resume

    On several nodes, and as a job of Slurm:

      ptcli train recipes/sft.yaml launch.gpus=8 launch.nodes=2 --node-rank 0 --master 10.0.0.1:29500

      ptcli train recipes/sft.yaml launch.gpus=8 launch.nodes=2 --launcher slurm --dry-run
    """
    if assume_gpus is not None and not dry_run:
        raise RequestError("--assume-gpus plans for a machine that is not this one; it needs --dry-run")
    if overwrite and (resume or resume_from):
        raise RequestError("--overwrite throws away what --resume goes on from; give one of them")
    accepted = accept(
        Request(
            recipe, tuple(overrides or ()), smoke, assume_gpus,
            launcher=launcher, resume=resume, resume_from=resume_from, node_rank=node_rank, master=master,
        )
    )  # fmt: skip
    if dry_run:
        _print_plan(accepted, as_json)
    elif accepted.job:
        _submit(accepted, overwrite=overwrite, as_json=as_json)
    else:
        _run(accepted, overwrite=overwrite, as_json=as_json)


@app.command("serve-rollouts", short_help="Run only the vLLM rollout server of a recipe.")
def serve_rollouts(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Run only the vLLM rollout server of a recipe, in the foreground.

    The trainer, in a second terminal, uses it through rollouts.url:

      ptcli serve-rollouts recipes/grpo.yaml rollouts.port=8000

      ptcli train recipes/grpo.yaml rollouts.url=http://127.0.0.1:8000
    """
    from ptcli.run.panel import choose_view
    from ptcli.run.supervise import serve

    plan = plan_request(Request(recipe, tuple(overrides or ()), server_only=True))
    _print_notes(plan)
    raise typer.Exit(serve(plan, view=choose_view(quiet=False)))


@app.command(short_help="Merge an adapter into its base: a model to serve.")
def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="A folder, a run directory, RUN@500, or a sharded checkpoint.")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the merged model goes.")] = None,
    base: Annotated[
        str | None, typer.Option(metavar="PATH", help="A folder or hub id instead of the base that the adapter names.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="D", help="bfloat16, float16 or float32. Default: as is.")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Cut the weights anew, as 5GB. Default: the base's files.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Compare with base and adapter before the model is published.")] = True,
    serve_check: Annotated[
        bool, typer.Option("--serve-check", help="Load the result in vLLM, too, and compare a completion.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done. Writes nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is at DIR.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept an adapter that lacks tensors which its config targets.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Merge a LoRA adapter into its base: a folder that vLLM, SGLang or transformers serve.

    The weights are streamed: a few hundred megabytes of memory, whatever the model's size. The folder appears when it
    is whole and verified, or not at all:

      ptcli merge runs/sft --out models/sft

      ptcli merge runs/sft@500 --out models/sft-500 --base Qwen/Qwen2.5-0.5B-Instruct

      ptcli merge runs/sft --dry-run

    A sharded checkpoint of a full fine-tune (FSDP, ZeRO) is put together in the same way:

      ptcli merge runs/big@500 --out models/big
    """
    from ptcli.merge.request import plan_request as plan_merge_request
    from ptcli.merge.verifier import begun_verifier

    if out is None and not dry_run:
        raise RequestError(Problem("where the merged model goes is not said", "add --out DIR, or --dry-run"))
    with begun_verifier() if verify and out and not dry_run else nullcontext() as verifier:
        plan = plan_merge_request(
            adapter,
            base=base,
            dtype=dtype,
            max_shard_size=max_shard_size,
            allow_missing=allow_missing,
            download=not dry_run,
        )
        if dry_run or out is None:
            _print_merge_plan(plan, out, force, as_json)
        else:
            _merge(plan, out, as_json, force=force, verifier=verifier, serve_check=serve_check)


@app.command("validate-data", short_help="Check a recipe's data against its method. Needs no GPU.")
def validate_data(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="The YAML recipe.")] = None,
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Instead of a recipe: a file, a folder, a glob or a hub id.")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="M", help="With --data: one of `ptcli methods`.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH", help="With --data: whose tokenizer; without, tokens are not checked.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="With --data: tokens of a row at most. Default: TRL's.")
    ] = None,
    sample: Annotated[int | None, typer.Option(metavar="N", min=1, help="Look at N rows only, spread evenly.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Tokenize every row, not a sample.")] = False,
    show: Annotated[int, typer.Option(metavar="N", min=0, help="Print N rows, marking what is trained.")] = 0,
    explain: Annotated[
        str | None, typer.Option(metavar="RULE", help="Print what a rule means, and nothing else.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the data of a recipe, or a file, against what the method trains on.

    Every row is read as it is in the file, and tokenized as the method's trainer does it (a sample, unless --full):

      ptcli validate-data recipes/sft.yaml

      ptcli validate-data --data my.jsonl --method dpo --model Qwen/Qwen2.5-0.5B-Instruct --show 3

      ptcli validate-data --explain boundary-token-merge

    Exit code 1 when there is an error; warnings are allowed.
    """
    if explain is not None:
        return _explain(explain)
    if sample is not None and full:
        raise RequestError("--sample looks at some rows and --full at all; give one of them")
    if show and as_json:
        raise RequestError("--show prints rows for people; leave it out, or --json")
    from ptcli.data.check import Depth
    from ptcli.data.request import DataRequest

    request = DataRequest(recipe, tuple(overrides or ()), data, method, model, max_length)
    _validate(request, Depth(sample, full, show), as_json)


@app.command(short_help="Print or write a commented recipe to start from.")
def init(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="One of `ptcli methods`.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it here, to a new file, instead of printing it.")
    ] = None,
) -> None:
    """Print a commented recipe of a method to start from, or write it to a file.

    It trains a small public model on public data with published values, and a comment says what each key does:

      ptcli init grpo > my.yaml

      ptcli train my.yaml --smoke
    """
    from ptcli.recipe.starters import starter, write_starter

    if out is None:
        typer.echo(starter(method), nl=False)
    else:
        write_starter(method, out)
        typer.echo(f"wrote {out}; try it with: ptcli train {out} --smoke", err=True)


@app.command(short_help="Check this machine and its packages, and say what mends what is wrong.")
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Check for this recipe, what it needs and only that.")
    ] = None,
    overrides: Overrides = None,
    math: Annotated[
        bool, typer.Option("--math", help="Compare the trainers' losses with their papers' formulas, on this CPU.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check whether this machine and this set of packages can run ptcli, or a recipe.

    Packages, whether they can be imported and fit together, GPUs and driver, whether two processes reach each other,
    shared memory, limits, ports, disk, hub, Slurm: each line passes, warns or fails, with the command that mends it. It
    takes a little longer than importing vLLM, and changes nothing:

      ptcli doctor

      ptcli doctor recipes/grpo.yaml rollouts.port=8000

    The mathematics are another check, for after an upgrade of torch, transformers, TRL or PEFT: the real trainers on
    the shipped model, offline, in a minute or two:

      ptcli doctor --math

    Exit code 1 when something fails, or a formula does not hold; warnings are allowed.
    """
    if math and recipe is not None:
        raise RequestError(Problem("--math checks the same whatever the recipe", "leave RECIPE out, or --math"))
    _check_math(as_json) if math else _examine(recipe, tuple(overrides or ()), as_json)


@app.command()
def schema(
    method: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="Only what this method takes.")] = None,
) -> None:
    """Print the JSON schema of a recipe, for editors.

    The shipped copies are what a recipe's first line points at:

      # yaml-language-server: $schema=schema/grpo.json
    """
    from ptcli.methods import find_method
    from ptcli.recipe.schema import recipe_schema

    _print_json(recipe_schema(find_method(method).name if method else None))


@app.command(short_help="List the methods, their data and what each needs.")
def methods(as_json: Json = False) -> None:
    """List the methods: online or not, data, what each needs; and TRL's trainers that are not covered yet."""
    from ptcli.listing import method_facts, method_lines

    if as_json:
        _print_json(method_facts())
    else:
        typer.echo("\n".join(method_lines()))


def _examine(recipe: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Look at this machine, print the findings and leave with their exit code."""
    from ptcli.doctor.examine import examine
    from ptcli.doctor.findings import render_examination
    from ptcli.doctor.needs import Needs, recipe_needs
    from ptcli.run.panel import choose_view

    needs = Needs() if recipe is None else recipe_needs(recipe, overrides)
    examination = examine(needs, choose_view(quiet=as_json))
    with _unread_output_forgiven():
        if as_json:
            _print_json(examination.as_dict())
        else:
            colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
            typer.echo(render_examination(examination, _terminal_width(), colours=colours))
    raise typer.Exit(0 if examination.ok else 1)


def _check_math(as_json: bool) -> None:
    """Check the mathematics, print the table and leave with its exit code."""
    from ptcli.doctor.checkup import check_math
    from ptcli.doctor.report import render_report
    from ptcli.run.panel import choose_view

    report = check_math(choose_view(quiet=as_json))
    with _unread_output_forgiven():
        _print_json(report.as_dict()) if as_json else typer.echo(render_report(report, _terminal_width()))
    raise typer.Exit(0 if report.ok else 1)


def _explain(rule: str) -> None:
    from ptcli.data.pages import page

    typer.echo(page(rule), nl=False)


def _validate(request: DataRequest, depth: Depth, as_json: bool) -> None:
    """Check data, print the report and leave with its exit code."""
    from ptcli.data.check import check
    from ptcli.data.child import progress_text
    from ptcli.data.report import report_json, report_lines
    from ptcli.data.request import accept_data
    from ptcli.run.panel import choose_view
    from ptcli.run.signals import signals_raised

    accepted, view = accept_data(request), choose_view(quiet=as_json or not sys.stderr.isatty())
    try:
        with signals_raised():
            checked = check(
                accepted.recipe,
                depth,
                progress=lambda *read: view.show(f"reading {progress_text(*read)}"),
                hide_torch=True,
                tokenizer_needed=accepted.named_model,
            )
    except RequestError as error:
        raise RequestError([accepted.sources.locate(problem) for problem in error.problems]) from None
    finally:
        view.close()
    with _unread_output_forgiven():
        if as_json:
            _print_json(report_json(checked.report))
        else:
            typer.echo(
                "\n".join([*checked.shown_lines(sys.stdout.isatty()), *report_lines(checked.report, checked.place)])
            )
    raise typer.Exit(0 if checked.report.ok else 1)


def _print_merge_plan(plan: MergePlan, out: Path | None, force: bool, as_json: bool) -> None:
    from ptcli.merge.publish import check_place
    from ptcli.merge.render import plan_json, plan_lines

    if out is not None:
        check_place(out, plan.nbytes, force=force, read=(plan.base, plan.adapter))
    _print_json(plan_json(plan, out)) if as_json else typer.echo("\n".join(plan_lines(plan, out)))


def _merge(
    plan: MergePlan, out: Path, as_json: bool, *, force: bool, verifier: Verifier | None, serve_check: bool
) -> None:
    """Merge, and say what came of it."""
    from ptcli.merge.lean import skip_bitsandbytes
    from ptcli.merge.progress import Reporter
    from ptcli.merge.render import all_notes, merged_lines
    from ptcli.merge.run import run_merge
    from ptcli.run.panel import choose_view
    from ptcli.run.signals import signals_raised

    for note in all_notes(plan):
        typer.echo(f"note: {note}", err=True)
    view = choose_view(quiet=as_json)
    skip_bitsandbytes()
    try:
        with signals_raised():
            merged = run_merge(
                plan, out, force=force, verify=verifier or False, serve_check=serve_check, progress=Reporter(view)
            )
    finally:
        view.close()
    with _unread_output_forgiven():
        _print_json(merged.as_dict()) if as_json else typer.echo("\n".join(merged_lines(merged, plan)))


def _print_plan(accepted: Accepted, as_json: bool) -> None:
    from ptcli.plan.render import render_job, render_json, render_text

    if as_json:
        _print_json(render_json(accepted.plan, accepted.job))
    else:
        typer.echo(render_job(accepted.plan, accepted.job) if accepted.job else render_text(accepted.plan))


def _submit(accepted: Accepted, *, overwrite: bool, as_json: bool) -> None:
    """Submit the job of a plan, and say how to follow it."""
    from ptcli.run.panel import choose_view
    from ptcli.run.slurm import submit, submitted_lines

    _print_notes(accepted.plan)
    submitted = submit(accepted, overwrite=overwrite, view=choose_view(quiet=as_json))
    with _unread_output_forgiven():
        _print_json(submitted.as_dict()) if as_json else typer.echo("\n".join(submitted_lines(submitted)))


def _run(accepted: Accepted, *, overwrite: bool, as_json: bool) -> None:
    """Run a plan to its end and leave with its exit code."""
    from ptcli.run.panel import choose_view
    from ptcli.run.report import finished_lines
    from ptcli.run.resume import way_back
    from ptcli.run.start import start

    plan = accepted.plan
    _print_notes(plan)
    status = start(accepted, overwrite=overwrite, view=choose_view(quiet=as_json))
    for line in way_back(plan, status, sys.argv[1:]) if plan.node == 0 else ():
        typer.echo(line, err=True)
    with _unread_output_forgiven():
        if as_json:
            _print_json(status.as_dict())
        elif status.exit_code == 0 and plan.node == 0:
            typer.echo(
                "\n".join(finished_lines(plan.output_dir, status.step, status.events, merged=plan.after is not None))
            )
    raise typer.Exit(status.exit_code or 0)


def _terminal_width() -> int | None:
    """Characters of a line where stdout is a terminal; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print_notes(plan: Plan) -> None:
    for note in plan.notes:
        typer.echo(f"note: {note}", err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


@contextmanager
def _unread_output_forgiven() -> Iterator[None]:
    """A reader who went away (`| head`) or a full disk takes nothing from what a run came to."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            typer.echo(f"error: cannot write to stdout: {error.strerror}", err=True)
        _discard_stdout()


def _discard_stdout() -> None:
    # Without this, Python complains once more at exit, and ends with 120.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Turn every error that ptcli raises on purpose into a message on stderr and an exit code."""
    try:
        yield
    except RequestError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        raise SystemExit(error.exit_code) from None
    except PtcliError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(Interrupted(2).exit_code) from None
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has seen enough.
        _discard_stdout()
        raise SystemExit(0) from None
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise  # not of a stream: a mistake of ours
        typer.echo(f"error: cannot write to stdout: {error.strerror}", err=True)
        _discard_stdout()
        raise SystemExit(WorkError.exit_code) from None


def _open_standard_streams() -> None:
    """Open the standard streams that a parent closed.

    A closed standard stream (`>&-`) would have its number given to the next file that is opened, a lock or a log.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def main() -> None:
    with _errors_reported():
        _open_standard_streams()
        app()
