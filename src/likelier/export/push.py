"""Sending an exported folder to the Hub: only when asked, and what goes there is named first."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from likelier.base.errors import ConfigError, OutputError
from likelier.base.files import MANIFEST
from likelier.base.terminal import say

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def must_be_able_to_push(repository: str) -> None:
    """Look whether somebody is logged in, before hours of work; nothing is made.

    Raises ConfigError for a name that none can have, OutputError where nobody is logged in.
    """
    try:
        validate_repo_id(repository)
        if "/" not in repository:
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        what = f"{repository!r} is no name of a repository ({error})"
        raise ConfigError(what, where="--push", hint="write it as owner/name") from error
    try:
        HfApi().whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise _refused(repository, error) from error


def push(folder: Path, repository: str, public: bool = False) -> None:
    """Send every file of a folder but its manifest; the repository is private unless it is there
    already or ``public``.

    Raises OutputError where the Hub refuses.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    total = sum(file.stat().st_size for file in files)
    say(f"sending {len(files)} files, {total / 1e6:,.1f} MB, to {repository}:")
    for file in files:
        say(f"  {file.relative_to(folder)}  {file.stat().st_size:,} bytes")
    api = HfApi()
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=[MANIFEST],
                          commit_message="A model trained on preferences")  # fmt: skip
    except (HfHubHTTPError, OSError) as error:
        raise _refused(repository, error) from error
    say(f"sent: {made}")


def _refused(repository: str, error: Exception) -> OutputError:
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return OutputError(f"the Hub refuses: {said}", where=f"--push {repository}", hint=_LOGIN)
