"""The hub of Hugging Face: asked for what is neither a folder nor in its cache, after one short look if it is there."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from model.errors import ModelUnavailable

T = TypeVar("T")
LOOK = 5  # seconds
ABOUT_THE_HUB = "Check the name and the connection, or download its folder elsewhere and give the path: --model FOLDER"


def fetched(load: Callable[..., T], name: str | Path, **options) -> T:
    """`load(name, **options)`, a `from_pretrained` or the like, of a folder, of the cache, or else of the hub.

    Raises `ModelUnavailable` when the hub does not have it or does not answer, and whatever `load` raises.
    """
    if Path(name).is_dir():
        return load(name, **options)
    try:
        return load(name, local_files_only=True, **options)
    except OSError:  # not in the cache, or only in part
        look_for(str(name))
    except ValueError as error:  # in the cache, and of a kind that is not known; or a part of it is not there
        try:
            look_for(str(name))
        except ModelUnavailable:
            raise error from None
    return load(name, **options)


def look_for(name: str) -> None:
    """Ask the hub once whether it has the model `name`; the libraries would ask five times, with pauses between.

    Raises `ModelUnavailable` when it has not, or after 5 seconds. In a thread, for looking a host up by its name knows
    no limit of time; it is left alone then.
    """
    answer: list[Exception | None] = []

    def look() -> None:
        try:
            HfApi().model_info(name, timeout=LOOK)
            answer.append(None)
        except Exception as error:  # of the hub, of the network or of the system: each is said below
            answer.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(LOOK)
    error = answer[0] if answer else TimeoutError()
    if error is None:
        return
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        why = "it is no folder here, and the hub has no model of that name that it shows without a login"
    else:
        why = "it is neither a folder here nor in the cache, and the hub does not answer"
    raise ModelUnavailable(
        f"The model {name} cannot be loaded: {why}. {ABOUT_THE_HUB}. Without any download: --model pocket."
    )
