"""Token checks: rows rendered and tokenised as the method's trainer does, without trl and torch."""

from ptcli.data.tokens.check import TokenChecker
from ptcli.data.tokens.encoded import Encoded, Sample
from ptcli.data.tokens.loading import Limits, limits_of, load_tokenizer, without_torch
from ptcli.data.tokens.show import render_show
from ptcli.data.tokens.tally import TokenTally, conclude_tokens, eval_mask_mismatch, merge, summarize

__all__ = [
    "Encoded",
    "Limits",
    "Sample",
    "TokenChecker",
    "TokenTally",
    "conclude_tokens",
    "eval_mask_mismatch",
    "limits_of",
    "load_tokenizer",
    "merge",
    "render_show",
    "summarize",
    "without_torch",
]
