"""A folder to the hub, in a process of its own: so that it can be ended at a deadline, whatever it hangs in.

`python -m qedmeg.release.upload` is the process's side. It prints the address of what it made, or one line on what went
wrong; the token comes from the environment alone, and is in neither.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from qedmeg.errors import UserError

TOKEN_VARIABLE = "HF_TOKEN"
CHECK_SECONDS = 120.0
UPLOAD_SECONDS = 900.0
_SLOWEST_BYTES = 500_000
"""A second: a deadline for large folders."""
REQUEST_SECONDS = 60.0
"""Longest silence of the hub within a request."""
_FAILED = 3
_OLD_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


def check_push(repo: str, private: bool) -> None:
    """See all that can be seen of a push before there is anything to push.

    Raises:
        UserError: the name is no ORG/NAME, there is no token or the hub does not take it, the hub is out of reach, or
            `private` is asked of a repository that is public.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push: {repo!r}: not a name on the hub: {error}".replace("\n", " ")) from None
    if repo.count("/") != 1:
        raise UserError(f"--push: {repo!r}: expected ORG/NAME, the owner and the name of the repository")
    if not os.environ.get(TOKEN_VARIABLE):
        raise UserError(
            f"--push: the environment variable {TOKEN_VARIABLE} holds no token; put one with write rights there"
        )
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError(f"--push: {name} is set, which keeps the hub out; unset it to push")
    _run({"repo": repo, "private": private}, CHECK_SECONDS)


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a release; its address. Weights that the repository had before and that are no part of it are removed.

    Raises:
        UserError: the hub refuses it, or is out of reach; or the deadline has passed.
    """
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    job: dict[str, object] = {"repo": repo, "private": private, "folder": str(folder.resolve())}
    return _run(job, UPLOAD_SECONDS + size / _SLOWEST_BYTES)


def _run(job: dict[str, object], seconds: float) -> str:
    command = [sys.executable, "-m", "qedmeg.release.upload", json.dumps(job)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"--push: the hub has not done it in {seconds:.0f} s; push again later") from None
    said = done.stdout.strip()
    if done.returncode == _FAILED:
        raise UserError(f"--push: {said}")
    if done.returncode:
        raise UserError(f"--push: the upload ended with status {done.returncode}; its message is above. Push again")
    return said


# --- the process's side ---------------------------------------------------------------------------------------------


def main(job: dict[str, object]) -> None:
    """Check, or upload where there is a folder."""
    import httpx2
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx2.Client:
        made = default_client_factory()
        made.timeout = httpx2.Timeout(REQUEST_SECONDS)
        return made

    set_client_factory(client)
    repo, private = str(job["repo"]), bool(job["private"])
    api = HfApi(token=os.environ[TOKEN_VARIABLE])
    try:
        api.whoami()
        if "folder" in job:
            address = api.create_repo(repo, private=private or None, exist_ok=True)
        try:
            public = not api.model_info(repo).private
        except RepositoryNotFoundError:  # or one that this token may not see: then its creation is refused
            public = False
        if private and public:
            _fail(f"{repo} is there and public, and --private was given; make it private on the hub first")
        if "folder" in job:
            api.upload_folder(
                folder_path=str(job["folder"]),
                repo_id=repo,
                commit_message="Release by qedmeg",
                delete_patterns=_OLD_WEIGHTS,
            )
            print(address)
    except HfHubHTTPError as error:
        _fail(_told(error.response.status_code, repo))
    except HFValidationError as error:
        _fail(f"{repo}: not a name on the hub: {' '.join(str(error).split())}")
    except (httpx2.HTTPError, OSError) as error:
        _fail(f"{api.endpoint} cannot be reached ({type(error).__name__}); look at the network and HF_ENDPOINT")
    except (RuntimeError, ValueError) as error:  # of an upload of large files
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            _fail(_told(cause.response.status_code, repo))
        _fail(f"the upload failed ({type(cause).__name__}: {_without_token(str(cause))}); push again")


def _told(status: int, repo: str) -> str:
    if status == 401:
        return f"the hub does not take the token in {TOKEN_VARIABLE} (401); make a new one with write rights"
    if status == 403:
        return f"the token in {TOKEN_VARIABLE} may not write to {repo} (403); give it write rights, or another ORG/NAME"
    if status == 429:
        return "the hub asks for a pause (429); push again later"
    return f"the hub answered with status {status} for {repo}; push again later"


def _without_token(text: str) -> str:
    return " ".join(text.replace(os.environ[TOKEN_VARIABLE], "***").split())


def _fail(text: str) -> NoReturn:
    print(text)
    sys.stdout.flush()
    os._exit(_FAILED)  # threads of an upload that hangs would be waited for


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
