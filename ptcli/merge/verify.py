"""Whether a merged folder is what it should be: in its files, and in what it computes.

The numbers are the logits of seeded prompts: of the base with the adapter on it, unmerged, in PEFT's own forward,
against those of the merged folder as its config says to load it. Both run module by module (`ptcli.merge.layered`), in
float32, so that what is left between them is the rounding of the merged weights to their type. Where PEFT's merge is
silently wrong (an adapter on one of two tied embeddings, or on both), its unmerged forward on embeddings that are two
tensors is right, and that is what is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import peft
import psutil
import torch
import transformers
from torch import Tensor

from ptcli.errors import PtcliError, WorkError
from ptcli.merge.handover import untie_embeddings
from ptcli.merge.layered import Float32, Layered, NotLayered, Unfilled, Workers, outline
from ptcli.merge.machine import worker_count
from ptcli.merge.model import ITEM_BYTES, MergePlan, Progress, Verification
from ptcli.merge.quiet import quiet_libraries
from ptcli.merge.structure import check_numbers, check_structure
from ptcli.recipe.local_models import read_header

SEED = 20250
PROMPTS, LENGTH = 2, 8
"""Sequences and tokens of each: enough to tell, few enough that reading the weights is what takes the time."""
TOLERANCE = 12.0
"""How far the logits may be apart, in roundings of a weight times the square root of the layers: see `limit_of`."""

_HEADS = {"SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification"}
_ROUNDING = {"BF16": 2.0**-9, "F16": 2.0**-12}
"""Largest relative error of a number that is rounded to the type: half a unit in the last place."""
_FLOAT32 = 2.0**-20
"""What sums in float32 in another order may differ, relatively."""


def verify_merge(
    plan: MergePlan, folder: Path, *, progress: Progress, written: Callable[[], object] = lambda: None
) -> Verification:
    """Look at a merged folder that has its configs, and its weights when `written` returns, which is called once.

    Takes the memory of two of the largest tensors, or of the largest module where that is more (the experts of a
    layer are one). Raises WorkError when the folder does not hold what it should.
    """
    look = _Look(plan, folder, progress, written)
    with quiet_libraries(), _single_threaded():
        if plan.mode == "consolidate":
            look.at_structure()
            look.at_numbers(frozenset())
            return _check_runs(plan, folder, progress)
        sound: set[str] = set()
        found = compare_logits(plan, folder, progress, look.at_structure, sound)
        look.at_numbers(sound)
        return _judge(plan, found)


class _Look:
    """What is looked at beside the logits."""

    def __init__(self, plan: MergePlan, folder: Path, progress: Progress, written: Callable[[], object]):
        self._plan, self._folder, self._progress, self._written = plan, folder, progress, written
        self._seen = False

    def at_structure(self) -> None:
        """Wait for the weights, and look at what is there; once."""
        if not self._seen:
            self._written()
            check_structure(self._plan, self._folder)
            self._seen = True

    def at_numbers(self, sound: Collection[str]) -> None:
        check_numbers(self._plan, self._folder, self._progress, sound)


def _judge(plan: MergePlan, found: Verification) -> Verification:
    if found.relative is None or found.relative <= limit_of(plan):  # NaN is not
        return found
    raise WorkError(
        f"the merged model does not compute what base and adapter do: {found.line().removeprefix('verified ')}; "
        f"rounding explains a relative difference of {limit_of(plan):.2g}"
    )


def _check_runs(plan: MergePlan, folder: Path, progress: Progress) -> Verification:
    """Whether a model that nothing can be compared with computes finite numbers: with a weight too few it gives NaN."""
    try:
        logits = _run(_layered(plan, folder, True, progress), plan, Float32())
    except PtcliError:
        raise
    except Exception as error:
        return Verification(None, way=f"it cannot be run layer by layer ({type(error).__name__}: {_first_line(error)})")
    if not logits.isfinite().all():
        raise WorkError("the consolidated model computes numbers that are not finite")
    return Verification(None, compared=False, way="each of its tensors is there, and it computes finite numbers")


def compare_logits(
    plan: MergePlan,
    folder: Path,
    progress: Progress,
    whole: Callable[[], None] = lambda: None,
    sound: set[str] | None = None,
) -> Verification:
    """Both models' logits, layer by layer where that is possible, else both as a whole where memory allows it.

    `whole` returns when the merged weights are there. Tensors that are seen to be finite are added to `sound`.
    """
    try:
        return _compare(*_both_layered(plan, folder, progress, whole, sound), "layer by layer")
    except PtcliError:
        raise
    except Exception as error:  # whatever an architecture of its own kind does in there
        reason = f"it cannot be run layer by layer ({type(error).__name__}: {_first_line(error)})"
    whole()
    need, free = _whole_bytes(plan), psutil.virtual_memory().available
    if need > free:
        return Verification(None, way=f"{reason}, and as a whole takes {_gib(need)} of which {_gib(free)} are free")
    try:
        reference = _whole(plan, folder, False, progress)
        return _compare(reference, _whole(plan, folder, True, progress), "as a whole")
    except PtcliError:
        raise
    except Exception as error:
        return Verification(None, way=f"{reason}, nor as a whole ({type(error).__name__}: {_first_line(error)})")


def limit_of(plan: MergePlan) -> float:
    """Largest relative difference of logits that rounding explains.

    The errors of a layer's weights, each at most `eps`, are independent, so that those of L layers add up as the
    square root of L does.
    """
    eps = max((_ROUNDING.get(each.dtype, _FLOAT32) for each in plan.outputs), default=_FLOAT32)
    return TOLERANCE * eps * math.sqrt(max(1, _layers(plan)))


def _layers(plan: MergePlan) -> int:
    config = plan.base_config.get("text_config") or plan.base_config
    return int(config.get("num_hidden_layers") or config.get("n_layer") or 1)


# --- the two models --------------------------------------------------------------------------------------------------


def _both_layered(
    plan: MergePlan,
    folder: Path,
    progress: Progress,
    whole: Callable[[], None] = lambda: None,
    sound: set[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (prompts, tokens, vocabulary) of reference and merged model, which run beside each other."""
    stop, cores = Event(), worker_count()
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(cores) as threads, _set_when_left(stop):
        workers = Workers(threads, cores)
        model = _outline(plan, folder, True)
        first = _layered(plan, folder, False, progress)
        computed = pool.submit(_run, first, plan, Float32(stop, workers))
        whole()
        second = _of_merged(folder, model, sound)
        merged, reference = _run(second, plan, Float32(stop, workers)), computed.result()
    if not reference.isfinite().all():
        raise NotLayered("base and adapter give numbers that are not finite")
    return reference, merged


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Several threads for one multiplication of so few tokens would wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _set_when_left(stop: Event) -> Iterator[None]:
    """Whatever ends the block, Ctrl-C too, ends the threads of a pool that would be waited for."""
    try:
        yield
    finally:
        stop.set()


def _layered(plan: MergePlan, folder: Path, merged: bool, progress: Progress) -> Any:
    model = _outline(plan, folder, merged)
    if merged:
        return _of_merged(folder, model)
    layered = Layered(plan.base, model, brought_by(plan.adapter))
    _tell(layered, progress, "computing with base and adapter, and with the merged model")
    return layered.attach(_with_adapter(layered.model, plan, lean=plan.mode == "stream"))


def _outline(plan: MergePlan, folder: Path, merged: bool) -> Any:
    config = _config(plan, folder, merged)
    return outline(_model_class(plan, config), config)


def _of_merged(folder: Path, model: Any, sound: set[str] | None = None) -> Any:
    layered = Layered(folder, model, sound=sound)
    return layered.attach(layered.model)


def _whole(plan: MergePlan, folder: Path, merged: bool, progress: Progress) -> Tensor:
    """The same of a model in memory."""
    progress("loading the merged model" if merged else "loading base and adapter", 0, 0)
    config = _config(plan, folder, merged)
    place = folder if merged else plan.base
    model_class = _model_class(plan, config)
    if not merged:
        config.get_text_config().vocab_size = _vocabulary(plan) or config.get_text_config().vocab_size
    model = model_class.from_pretrained(place, config=config, dtype=torch.float32, attn_implementation="eager")
    if not merged:
        if _untied(plan):
            untie_embeddings(model)
        if "vocab_size" in plan.config_changes:
            model.resize_token_embeddings(plan.config_changes["vocab_size"])
        model = _with_adapter(model, plan)
    return _run(model.eval(), plan, nullcontext())


def _config(plan: MergePlan, folder: Path, merged: bool) -> Any:
    """The merged model's config; tied for the reference where the base is, for PEFT to see."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not merged and _untied(plan):
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True
    return config


def _vocabulary(plan: MergePlan) -> int | None:
    """Rows of the base's embeddings."""
    size = (plan.base_config.get("text_config") or plan.base_config).get("vocab_size")
    return size if isinstance(size, int) else None


def _untied(plan: MergePlan) -> bool:
    return plan.config_changes.get("tie_word_embeddings") is False


def _model_class(plan: MergePlan, config: Any) -> Any:
    """The class that the adapter's task asks for, or that the config names."""
    head = _head(plan)
    if head is None:
        for name in config.architectures or ():
            if hasattr(transformers, name):
                return getattr(transformers, name)
        head = "AutoModelForCausalLM"
    try:
        return getattr(transformers, head)._model_mapping[type(config)]
    except KeyError as error:
        raise NotLayered(f"transformers has no {head} for {config.model_type}") from error


def _head(plan: MergePlan) -> str | None:
    """transformers' class for a classifier or reward model; None for what writes."""
    return _HEADS.get(str(plan.adapter_config.get("task_type")))


def _with_adapter(model: Any, plan: MergePlan, *, lean: bool = False) -> Any:
    """`lean`: without making the adapter's tensors twice. Not where PEFT makes them of the base's, as for PiSSA."""
    with Unfilled():
        return peft.PeftModel.from_pretrained(model, str(plan.adapter), low_cpu_mem_usage=lean).eval()


def brought_by(adapter: Path) -> frozenset[str]:
    """Names that the adapter has whole tensors for, as the model has them; among them many that the model has not."""
    names = read_header(adapter / "adapter_model.safetensors")
    return frozenset(name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in names)


# --- running and comparing -------------------------------------------------------------------------------------------


def _run(model: Any, plan: MergePlan, mode: Any) -> Tensor:
    ids = prompts_for(plan, model.get_input_embeddings())
    # A classifier finds the end of each row by its padding, of which there is none, unless rows come one by one.
    batches = ids.split(1) if hasattr(model, "score") or hasattr(model, "classifier") else (ids,)
    with torch.no_grad(), mode:
        return torch.cat([model(input_ids=batch, use_cache=False).logits.float() for batch in batches])


def prompts_for(plan: MergePlan, embeddings: Any) -> Tensor:
    """Token ids (PROMPTS, LENGTH): random ones from a seed, and among them those that the adapter trains or adds."""
    rows = next(each for each in embeddings.parameters() if each.ndim == 2).shape[0]
    rows = min(rows, plan.config_changes.get("vocab_size", rows))
    random = Random(SEED)  # torch's takes more imports, see `lean.skip_python_operators`
    ids = torch.tensor([[random.randrange(rows) for _ in range(LENGTH)] for _ in range(PROMPTS)])
    trained = plan.adapter_config.get("trainable_token_indices") or []
    listed = [index for each in trained.values() for index in each] if isinstance(trained, dict) else list(trained)
    wanted = [rows - 1, *listed][: LENGTH // 2]
    ids[0, : len(wanted)] = torch.tensor(wanted)
    return ids


def _compare(reference: Tensor, merged: Tensor, way: str) -> Verification:
    if reference.shape != merged.shape:
        raise WorkError(f"the merged model's logits are {list(merged.shape)}, the base's {list(reference.shape)}")
    reference, merged = reference.double(), merged.double()
    difference = reference - merged
    centred = reference - reference.mean(-1, keepdim=True) if reference.shape[-1] > 1 else reference
    one, other = reference.log_softmax(-1), merged.log_softmax(-1)
    return Verification(
        max_abs_diff=float(difference.abs().max()),
        kl=float((one.exp() * (one - other)).sum(-1).mean()),
        top1=float((reference.argmax(-1) == merged.argmax(-1)).float().mean()),
        relative=float(difference.square().mean(-1).sqrt().median() / centred.square().mean().sqrt()),
        way=way,
    )


def _tell(layered: Any, progress: Progress, activity: str) -> None:
    """Progress by decoder layers, which every architecture keeps in a list."""
    layers = max((list(each) for each in layered.model.modules() if isinstance(each, torch.nn.ModuleList)), key=len)
    for number, layer in enumerate(layers, 1):
        hook: Callable[..., None] = lambda *_, number=number: progress(activity, number, len(layers))  # noqa: E731
        layer.register_forward_hook(hook)


def _whole_bytes(plan: MergePlan) -> int:
    """Of the model in float32, and as much again for what loading takes."""
    return int(1.5 * sum(4 * each.nbytes // ITEM_BYTES[each.dtype] for each in plan.outputs))


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
