"""The Hub: what a push checks, and how files become one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_url,
    is_offline_mode,
)
from huggingface_hub.errors import (
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff, validate_repo_id
from transformers.utils import logging

from ..files.links import stays_inside
from ..files.model_files import stale_files
from ..version import __version__

logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
LARGEST_CARD = 10 * 2**20  # bytes of a card to read or to write
RETRIES = 5  # as the Hub's client does


def check_push(repo_id: str, *, token: str | bool | None, revision: str | None, create_pr: bool) -> None:
    """Raise if a push cannot succeed, before anything is computed, saved or sent.

    Args:
        repo_id: `"user/name"`, or `"name"` for the token's owner.
        token: see `OptinPruner.push_to_hub`.
        revision: branch to push to.
        create_pr: whether a pull request is wanted.

    Raises:
        ValueError: `repo_id` is no name of a repository, or a pull request is to go to a branch.
        OfflineModeIsEnabled: the offline flag is set.
        LocalTokenNotFoundError: there is no token.
    """
    try:
        validate_repo_id("" if repo_id is None else repo_id)  # it lets None pass
    except HFValidationError as error:
        raise ValueError(
            f"repo_id={repo_id!r} is not a name on the Hub: give 'user/name' of letters, digits, '-', '_' and '.', at "
            f"most 96 characters ({error})"
        ) from error
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"create_pr=True opens a pull request to main, not to revision={revision!r}: leave one out.")
    if is_offline_mode():
        raise OfflineModeIsEnabled(
            f"cannot push to {repo_id}: offline mode is on (HF_HUB_OFFLINE); unset it, or save_pretrained to a folder."
        )
    if "authorization" not in build_hf_headers(token=token):
        raise LocalTokenNotFoundError(
            f"cannot push to {repo_id} without a token: run `hf auth login`, set HF_TOKEN, or pass token=."
        )


def push(
    repo_id: str,
    files: Callable[[str, bytes | None], Mapping[str, Path | bytes]],
    *,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    message: str,
    create_pr: bool,
) -> CommitInfo:
    """Upload files in one commit, which also deletes model files of an earlier commit that have other names.

    Args:
        repo_id: the repository, made if it is missing; call `check_push` first.
        files: gets the repository's full id and the content of its card (`None` without one), and returns what to
            upload: path in the repository -> file or content.
        private: whether a new repository is private.
        token: see `OptinPruner.push_to_hub`.
        revision: the branch, made if it is missing.
        message: the commit's title.
        create_pr: open a pull request instead of committing.

    Raises:
        ConnectionError: the Hub does not answer.
        HfHubHTTPError: the Hub refuses, or fails more often than its client retries.
    """
    api = HfApi(token=token, library_name="optimum-optin", library_version=__version__)
    with reaching(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision not in (None, "main") and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        content = files(repo_id, read_card(repo_id, token=token, revision=revision))
        stale = stale_files(api.list_repo_files(repo_id, revision=revision), content)
        # HfApi.upload_folder may split a folder into several commits (huggingface_hub 2 with hf_xet).
        return api.create_commit(
            repo_id,
            [CommitOperationDelete(name) for name in stale]
            + [CommitOperationAdd(name, each) for name, each in content.items()],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )


@contextmanager
def reaching(repo_id: str) -> Iterator[None]:
    """Say what to do if the Hub does not answer.

    Raises:
        ConnectionError: in the place of the error that the client's transport raised.
    """
    try:
        yield
    except Exception as error:
        # By name: the transport's package is not the same in all versions of huggingface_hub.
        if all(kind.__name__ != "TransportError" for kind in type(error).__mro__):
            raise
        raise ConnectionError(
            f"cannot push to {repo_id}: {constants.ENDPOINT} does not answer ({error}). The model is not lost: "
            "save_pretrained keeps it in a folder, and `optimum-cli optin push` uploads that later."
        ) from error


def read_card(repo_id: str, *, token: str | bool | None, revision: str | None, retries: int = RETRIES) -> bytes | None:
    """The content of the repository's card as it is now; `None` if it has none.

    Args:
        repo_id: the repository.
        token: see `OptinPruner.push_to_hub`; `False` asks as a stranger, who is told of public repositories alone.
        revision: its branch or commit.
        retries: how often to try again if the Hub does not answer.

    Returns:
        At most `LARGEST_CARD` bytes and one more, by which it is told that there were more.
    """
    # Not through the cache: if the Hub fails, it would give an old card, which the push would write back; and what is
    # in the cache may be private.
    url = hf_hub_url(repo_id, CARD_FILE, revision=revision)
    headers, content = build_hf_headers(token=token), b""
    with http_stream_backoff("GET", url, headers=headers, max_retries=retries, follow_redirects=True) as response:
        try:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
        except RemoteEntryNotFoundError:
            return None
        for part in response.iter_bytes():
            content += part
            if len(content) > LARGEST_CARD:
                break
    return content[: LARGEST_CARD + 1]


def files_in(folder: Path) -> dict[str, Path]:
    """Path inside a folder -> file, without hidden files and folders (`.git`, `.cache`).

    Links that lead out of the folder are left out with a warning: a folder from a stranger may link to anything here.
    """
    found = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    files = {path.as_posix(): file for path, file in found.items() if not any(part[0] == "." for part in path.parts)}
    if outside := [name for name, file in files.items() if not stays_inside(file, folder)]:
        logger.warning(f"links that lead out of {folder} are not uploaded: {', '.join(outside)}.")
    return {name: file for name, file in files.items() if name not in outside}
