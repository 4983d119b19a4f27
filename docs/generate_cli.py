"""Writes `cli.md` from the parsers of `optimum-cli slicegpt`: `python docs/generate_cli.py`."""

from argparse import Action, ArgumentParser, BooleanOptionalAction
from pathlib import Path

from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.register.register_slicegpt import SliceGPTCommand


FILE = Path(__file__).with_name("cli.md")

TEXT = """\
<!-- Written by docs/generate_cli.py from optimum/commands/slicegpt. -->

# Command line

Installing the package gives `optimum-cli` one more command, `slicegpt`. For all of its subcommands:

- **Results** go to standard output, as a table or, with `--json`, as one JSON object; warnings and errors go to
  standard error.
- **Progress** goes there, too: a bar on a terminal; in a pipe, a file or a notebook a line for each phase, and at most
  one every half minute. The time left while slicing is that of the whole run.
- **Errors** that a user can correct are one line, `error: ...`. [Troubleshooting](troubleshooting.md) lists them. All
  checks run before weights are read, except that of how many tokens a text has.
- **Exit codes**: 0 when done, 1 after such an error, 2 for flags that are wrong by themselves, 130 after Ctrl-C, 143
  after a request to end (SIGTERM).
- **Output folders** are complete or absent: they are written under another name and renamed at the end. What
  is there already is refused; `--overwrite` replaces an earlier result, once the new one is complete.
{commands}"""

COMMAND = """
## {name}

{description}

```text
optimum-cli slicegpt {name} {required} [flags]
```
{groups}"""

GROUP = """{heading}
| Flag | Meaning |
| --- | --- |
{rows}
"""


def flag(action: Action) -> str:
    """Returns a flag and the name of its values."""
    names = action.option_strings if isinstance(action, BooleanOptionalAction) else action.option_strings[:1]
    value = "" if action.nargs == 0 or action.choices else f" {action.metavar or action.dest.upper()}"
    more = " ..." if action.nargs in ("+", "*") else ""
    return ", ".join(f"`{name}{value}{more}`" for name in names)


def meaning(action: Action) -> str:
    """Returns the choices of a flag, if it has any, and its help."""
    choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
    help = action.help.replace("%%", "%")  # argparse formats it.
    return f"{choices}: {help}" if choices else help


def group(title: str, actions: list[Action]) -> str:
    """Returns the table of a group of flags."""
    rows = "\n".join(f"| {flag(action)} | {meaning(action)} |" for action in actions)
    return GROUP.format(heading=f"\n{title}\n" if title else "", rows=rows)


def command(name: str, parser: ArgumentParser) -> str:
    """Returns the section of a command."""
    groups, required = [], []
    for each in parser._action_groups:  # argparse has no public list of its groups.
        actions = [action for action in each._group_actions if action.option_strings and action.dest != "help"]
        required += [f"{action.option_strings[0]} {action.metavar}" for action in actions if action.required]
        if actions:
            own = each.title not in ("options", "optional arguments", "positional arguments")
            groups.append(group(f"**{each.title[0].upper()}{each.title[1:]}**" if own else "", actions))
    return COMMAND.format(
        name=name, description=parser.description, required=" ".join(required), groups="".join(groups)
    )


def generate() -> dict[Path, str]:
    """Returns the text of `cli.md`."""
    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    subcommands = SliceGPTCommand(root.subparsers).registered_subcommands
    return {FILE: TEXT.format(commands="".join(command(each.COMMAND.name, each.parser) for each in subcommands))}


if __name__ == "__main__":
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")
