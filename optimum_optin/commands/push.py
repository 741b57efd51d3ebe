"""Upload a pruned folder to the Hub in one commit, with a card for that address."""

from __future__ import annotations

import argparse

from ..command_line.options import add_options, given
from ..publishing.pruned_folders import push_folder

_OPTIONS = ("private", "revision", "create_pr", "commit_message", "token", "scores")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `push`."""
    parser.add_argument("folder", metavar="DIR", help="folder of a pruned model")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name on the Hub; made if it does not exist")
    add_options(parser, push_folder, _OPTIONS)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Upload."""
    commit = push_folder(arguments.folder, arguments.repo_id, **given(arguments, _OPTIONS))
    url = commit.pr_url or commit.commit_url
    return {"repo_id": commit.repo_url.repo_id, "url": url}, url
