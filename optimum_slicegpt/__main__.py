"""`python -m optimum_slicegpt`: `optimum-cli slicegpt`, where that program is not on the path."""

import sys

from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.register.register_slicegpt import SliceGPTCommand


def main() -> None:
    """Runs the command that the arguments of this program name."""

    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    SliceGPTCommand(root.subparsers)
    args = root.parser.parse_args(["slicegpt", *sys.argv[1:]])
    args.func(args).run()


if __name__ == "__main__":
    main()
