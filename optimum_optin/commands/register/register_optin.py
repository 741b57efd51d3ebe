"""Registers `optimum-cli optin ...`. Optimum's command line reads it at start-up, so it imports nothing heavy.

It is installed as `optimum/commands/register/register_optin.py` (setup.py says how). The commands themselves, with
their arguments, are in `optimum_optin/commands/` and imported when one is run.
"""

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

COMMANDS = {
    "check": "prove that a model can be pruned, or show what is in the way",
    "prune": "prune a model and save the smaller one",
    "score": "score a model's units and save the scores, for any number of budgets",
    "plan": "show what budgets would keep, from saved scores",
    "sweep": "prune a model to many budgets, and measure and time each",
    "evaluate": "measure a model on a task of texts, images or sounds",
    "benchmark": "measure a pruned model against the dense one: speed, memory, size",
    "export": "export a model to ONNX, torch.export or OpenVINO, and check the export",
    "info": "show what a pruned folder holds, without loading weights",
    "push": "upload a pruned folder to the Hub",
    "recover": "finish a save to a folder that was killed, and delete what it left",
}


class OptinCommand(BaseOptimumCLICommand):
    """Hands the words after `optin` on to the command that they name."""

    COMMAND = CommandInfo(name="optin", help="Prune transformers in one shot, without training.")

    @staticmethod
    def parse_args(parser):
        """Add the command and, untouched, its arguments."""
        width = max(map(len, COMMANDS))
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.usage = f"optimum-cli optin {{{','.join(COMMANDS)}}} ..."
        parser.description = "Prune transformers in one shot, without training."
        parser.epilog = "commands:\n" + "".join(f"  {name:<{width}}  {text}\n" for name, text in COMMANDS.items())
        parser.epilog += "\n`optimum-cli optin COMMAND --help` shows a command's arguments."
        parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
        parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help=argparse.SUPPRESS)

    def run(self):
        """Run the command and exit with its code."""
        from optimum_optin.commands import run  # slow to import

        sys.exit(run(self.args.command, self.args.arguments))


REGISTER_COMMANDS = [OptinCommand]
