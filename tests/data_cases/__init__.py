"""Data sets with the verdict that each must get, written from the rules' specification alone."""

from tests.data_cases.legitimate import LEGITIMATE
from tests.data_cases.more import MORE
from tests.data_cases.wrong import WRONG

CASES = [*WRONG, *LEGITIMATE, *MORE]
