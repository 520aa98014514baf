"""From what a user calls a model to the folder its files are in, downloading them from the Hugging Face Hub if needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idefics.assets import EMBEDDED, EMBEDDED_NAME
from idefics.config.presets import preset_names
from idefics.errors import CheckpointNotFound, OptionError

__all__ = ["WANTED", "resolve"]

MAIN = "main"
"""The revision that everything has, folders too: what loaders pass who were told none."""

# Never pickle, no other frameworks' weights, no subfolders (other precisions, demos).
DESCRIBING = ("*.json", "*.jinja")
WANTED = (*DESCRIBING, "*.safetensors", "tokenizer.model")
UNWANTED = ("*/*",)

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
_ELSEWHERE = "to work without a network, download it elsewhere (`idefics download {model}`) and give the folder's path"


def resolve(
    model: str | Path | None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    offline: bool = False,
    progress: bool = True,
    to: str | Path | None = None,
    weights: bool = True,
) -> Path:
    """Finds a checkpoint's folder.

    A folder that exists is taken as it is; None, and `"idefics2-nano"` where no folder is called so, are the embedded
    model. What looks like a path (a `Path`, or text that begins with `.`, `/` or `~` or has more than one slash) is never
    looked up on the Hub; anything else is a Hub id.

    Args:
        model: a folder, a Hub id such as `"HuggingFaceM4/idefics2-8b"`, or None.
        revision: branch, tag or commit on the Hub; None for its main branch.
        cache_dir: where downloads are kept; None for the Hub client's own folder.
        token: for gated models; None for the one that `hf auth login` stored, False for none.
        offline: use only what is in the cache; the variable `HF_HUB_OFFLINE=1` says the same.
        progress: show a bar on stderr while downloading.
        to: put a Hub model's files there instead of in the cache.
        weights: False fetches only what describes the model, some hundred kilobytes.

    Raises:
        CheckpointNotFound: no such folder, id or revision; access refused; no network. Says which, and what to do.
        OptionError: a revision but main of a local folder or of the embedded model, or `to` for one of these.
    """
    if model is None or (model == EMBEDDED_NAME and not Path(model).is_dir()):
        return _embedded(revision=revision, to=to)
    if not str(model):
        raise CheckpointNotFound("no model was named; give a folder or a Hub id (owner/name)")
    try:
        folder = Path(model).expanduser()
    except RuntimeError:
        raise CheckpointNotFound(f"there is no folder {model}: no such user") from None
    if folder.is_dir():
        if revision not in (None, MAIN):
            raise OptionError(f"revision = {revision!r} was given, but {model} is a local folder, which has none")
        if to is not None:
            raise OptionError(f"{model} is a local folder already; copy it to {to} yourself")
        return folder
    if folder.is_file():
        raise CheckpointNotFound(f"{model} is a file; give the folder it lies in")
    if isinstance(model, Path) or _is_path(model):
        raise CheckpointNotFound(f"there is no folder {model}; a Hub id has the form owner/name")
    if model in preset_names():
        published = "" if model.startswith("tiny-") else f"; the published weights are HuggingFaceM4/{model}"
        raise CheckpointNotFound(
            f"{model} names a configuration, not weights: `idefics init {model} FOLDER` writes random ones{published}"
        )
    if not _ID.fullmatch(model) or ".." in model or "--" in model:
        raise CheckpointNotFound(f"{model!r} is neither a folder here nor a Hub id (owner/name)")
    return _download(
        model,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        offline=offline,
        progress=progress,
        to=to,
        patterns=WANTED if weights else DESCRIBING,
    )


def _embedded(*, revision: str | None, to: str | Path | None) -> Path:
    if revision not in (None, MAIN):
        raise OptionError(f"revision = {revision!r} was given, but the embedded model has none; name a Hub id")
    if to is not None:
        raise OptionError(f"the embedded model is no download; copy {EMBEDDED} to {to} yourself")
    if not EMBEDDED.is_dir():
        raise CheckpointNotFound(
            f"{EMBEDDED} does not exist: this installation lacks the embedded model; install the package again, "
            "or name another model"
        )
    return EMBEDDED


def _is_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1 or "\\" in model


def _download(
    model: str,
    *,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | bool | None,
    offline: bool,
    progress: bool,
    to: str | Path | None,
    patterns: Sequence[str],
) -> Path:
    # Imported here: a local folder needs no Hub client, and importing it takes a while.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = model if revision is None else f"{model} at revision {revision}"
    offline = offline or constants.HF_HUB_OFFLINE
    elsewhere = _ELSEWHERE.format(model=model)
    options: dict[str, Any] = {} if progress else {"tqdm_class": _silent_bar()}
    if to is not None:
        options["local_dir"] = to
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=offline,
                allow_patterns=list(patterns),
                ignore_patterns=list(UNWANTED),
                **options,
            )
        )
    except GatedRepoError:
        raise CheckpointNotFound(
            f"{at} is gated on the Hub: accept its terms on https://huggingface.co/{model}, then log in (`hf auth login`) "
            "or give a token"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointNotFound(
            f"{model} has no revision {revision!r} on the Hub; give a branch, tag or commit of it"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointNotFound(
            f"{model} is neither a folder here nor a model on the Hub; check the spelling, "
            "or log in (`hf auth login`) if it is private"
        ) from None
    except LocalEntryNotFoundError as error:
        if offline:
            raise CheckpointNotFound(
                f"{at} is not in the cache, and downloading is switched off (offline); {elsewhere}"
            ) from None
        raise CheckpointNotFound(f"{at} is not in the cache and the Hub cannot be reached; {elsewhere}") from error
    except HfHubHTTPError as error:
        raise CheckpointNotFound(f"the Hub refused {at}: {_first_line(error)}; {elsewhere}") from error
    except Exception as error:  # the client's HTTP library, and so its errors, differ between versions
        raise CheckpointNotFound(
            f"downloading {at} failed: {_first_line(error)}; run again, it goes on where it stopped; {elsewhere}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _silent_bar() -> type[Any]:
    from huggingface_hub import utils

    bar: type[Any] = utils.tqdm  # type: ignore[attr-defined, unused-ignore]

    def disabled(self: Any, *args: Any, **kwargs: Any) -> None:
        bar.__init__(self, *args, **{**kwargs, "disable": True})

    return type("SilentBar", (bar,), {"__init__": disabled})
