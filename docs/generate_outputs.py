"""
Writes what commands print into the pages that show it: behind a block of bash, into the block that `<!-- output -->`
begins. Run it as `python docs/generate_outputs.py`. These commands read the configuration of SmolLM2 alone.
"""

import contextlib
import io
import os
import re
import shlex
import tempfile
from pathlib import Path
from unittest.mock import patch

from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.register.register_slicegpt import SliceGPTCommand
from transformers import LlamaConfig


PAGES = [Path(__file__).with_name(name) for name in ("index.md", "streaming.md")]
SHOWN = re.compile(
    r"(?P<before>```bash\n(?P<command>[^`]+)```\n\n<!-- output -->\n```text\n)(?P<output>.*?)(?=```$)",
    flags=re.M | re.S,
)
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    dtype="bfloat16",
)
"""The sizes of that model, as its configuration on the Hub has them."""


def run(command: str) -> str:
    """
    Runs a command in a folder of its own, and returns what it prints where the processor multiplies bfloat16. What
    else depends on the machine is masked.
    """
    _, *arguments = shlex.split(command.replace("\\\n", " "))
    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    SliceGPTCommand(root.subparsers)
    args = root.parser.parse_args(arguments)
    here, printed = Path.cwd(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            CONFIG.save_pretrained(MODEL)
            quiet = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO())
            with quiet[0], quiet[1], patch("optimum_slicegpt.modeling.contexts.multiplies", return_value=True):
                args.func(args).run()
        finally:
            os.chdir(here)
    masked = re.sub(r"[\d.,]+ minutes", "… minutes", printed.getvalue())
    return re.sub(r"fits into [\d.,]+ GiB", "fits into … GiB", masked).rstrip() + "\n"


def generate() -> dict[Path, str]:
    """Returns the text of every page."""
    return {
        page: SHOWN.sub(lambda found: found["before"] + run(found["command"]), page.read_text(encoding="utf-8"))
        for page in PAGES
    }


if __name__ == "__main__":
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")
