"""Examples: what a round learns from when it is not its own samples.

    read   rows of a file, in the formats that TRL reads   `forms`
    encode prompts and answers as token ids                `encode`
    deal   whole pairs in endless, repeatable epochs       `stream`

`load_examples` does the first two and says what it left out. Nothing here imports torch.
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
