"""
A process that starts runs and is never killed itself, so that those which are need not import anything again.

    python killing.py

Reads lines of JSON, the arguments of `optimum-cli slicegpt`; forks, and prints the id of the process that runs them;
when that has ended, prints its exit status.
"""

import json
import os
import sys

import command_line

import optimum_slicegpt.commands.compress  # noqa: F401


def main():
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            command_line.run(*json.loads(line))
            os._exit(0)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
