"""The structure rules: everything that can be said of raw rows and arguments, without a tokenizer."""

from ptcli.data.rules.checker import Checker
from ptcli.data.rules.conclude import conclude
from ptcli.data.rules.duplicates import overlap
from ptcli.data.rules.profiles import merge
from ptcli.data.rules.table import RULES, Rule

__all__ = ["RULES", "Checker", "Rule", "conclude", "merge", "overlap"]
