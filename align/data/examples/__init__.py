"""Examples of a file or the inbox, for rounds that learn from them instead of from their own samples.

    forms    reads rows in the formats that TRL reads
    encode   turns prompts and answers into token ids
    stream   gives them out in endless, repeatable epochs, pairs as a whole

`load_examples` does the first two and reports the rows that it left out. Nothing here imports torch.
"""

from align.config.data import ExamplesConfig
from align.data.examples.load import Examples, Report, load_examples
from align.data.examples.stream import ExampleStream, Unit, rows_of

__all__ = [
    "ExampleStream",
    "Examples",
    "ExamplesConfig",
    "Report",
    "Unit",
    "load_examples",
    "rows_of",
]
