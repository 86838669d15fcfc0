"""`push_to_hub`: the finished model, in a repository of the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from mfpo.errors import MfpoError, first_line
from mfpo.train.processes import say
from mfpo.train.settings import TrainSettings

# Its bases are what its HTTP library raises, as where nothing answers, and OSError, as offline or without a token.
_FAULTS = (*HfHubHTTPError.__bases__, HFValidationError)


def open_repository(settings: TrainSettings, out: Path) -> str:
    """The repository's name; it is made if it does not exist. Raises MfpoError, before hours of training."""
    name = settings.hub_model_id or out.name
    try:
        repository = HfApi().create_repo(name, private=settings.hub_private_repo, exist_ok=True).repo_id
        if settings.hub_revision:
            HfApi().create_branch(repository, branch=settings.hub_revision, exist_ok=True)
    except _FAULTS as error:
        raise MfpoError(
            f"push_to_hub: cannot write to {name} on the Hub ({first_line(error)}); log in with `hf auth login`, or "
            "set hub_model_id to one of your repositories"
        ) from error
    return repository


def push(model: Path, repository: str, settings: TrainSettings) -> None:
    """Upload the folder. Raises MfpoError that says how to do so later."""
    try:
        HfApi().upload_folder(repo_id=repository, folder_path=model, revision=settings.hub_revision)
    except _FAULTS as error:
        revision = f" --revision {settings.hub_revision}" if settings.hub_revision else ""
        raise MfpoError(
            f"{model} is trained, but could not be pushed ({first_line(error)}); push it with "
            f"`hf upload {repository} {model}{revision}`"
        ) from error
    say(f"{model} is on the Hub as {repository}")
