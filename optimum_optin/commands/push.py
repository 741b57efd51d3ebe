"""Upload a pruned folder to the Hub as it is, in one commit."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from .info import read_pruned_config
from .options import add_options, given

_OPTIONS = ("private", "revision", "create_pr", "commit_message", "token")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `push` takes."""
    parser.add_argument("folder", metavar="DIR", help="folder of a pruned model")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name on the Hub; made if it does not exist")
    add_options(parser, push_folder, _OPTIONS)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Upload."""
    url = push_folder(arguments.folder, arguments.repo_id, **given(arguments, _OPTIONS))
    return {"repo_id": arguments.repo_id, "url": url}, url


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a pruned model",
    token: str | None = None,
) -> str:
    """Upload a pruned folder to the Hub as it is, in one commit.

    Args:
        folder: of a pruned model.
        repo_id: `"user/name"`; made if it does not exist.
        private: make it private, if it is made.
        revision: branch to commit to, made if it does not exist; `None` takes the main one.
        create_pr: open a pull request instead of committing.
        commit_message: first line of the commit.
        token: Hub token; `None` takes the one you are logged in with.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        ValueError: not a pruned folder, a wrong `repo_id`, or no token.
    """
    read_pruned_config(Path(folder))
    validate_repo_id(repo_id)
    if token is None and get_token() is None:
        raise ValueError("no Hub token: log in with `hf auth login`, set HF_TOKEN, or give --token.")
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, revision=revision, create_pr=create_pr, commit_message=commit_message
    )
    return commit.pr_url or commit.commit_url
