"""Composing the jobs of a multirun: Hydra reads and merges all files anew for every job, and does so twice."""

import copy
import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["composing_once"]


def composing_once(loader: Any) -> Callable[[Any, Sequence[str]], Any]:
    """Make Hydra's config loader read each file once, merge the same files once, and keep what its sweeper checks.

    Args:
      loader: the `config_loader` of a `HydraContext`; it is changed.

    Returns:
      `(the multirun's config, a job's overrides) -> the job's config`, which is the caller's to change.
    """
    loader.repository = _Read(loader.repository)
    loader._compose_config_from_defaults_list = _merging_once(loader._compose_config_from_defaults_list)
    compose, composed = loader.load_sweep_config, {}

    @functools.wraps(compose)
    def checked(master_config: Any, sweep_overrides: Sequence[str]) -> Any:
        job = composed[tuple(sweep_overrides)] = compose(master_config, list(sweep_overrides))
        return job

    def taken(master_config: Any, overrides: Sequence[str]) -> Any:
        job = composed.pop(tuple(overrides), None)
        return compose(master_config, list(overrides)) if job is None else job

    loader.load_sweep_config = checked
    return taken


def _merging_once(merge: Callable[..., Any]) -> Callable[..., Any]:
    """Return `merge(defaults, repo)` that merges equal lists of files from the same sources once."""

    @functools.wraps(merge)
    def merged(defaults: Sequence[Any], repo: Any) -> Any:
        kept, files = repo.delegate.merged, pickle.dumps(defaults)
        if files not in kept:
            kept[files] = pickle.dumps(merge(defaults=defaults, repo=repo))
        return pickle.loads(kept[files])

    return merged


class _Read:
    """A config repository that keeps what it has read, as bytes: who composes changes what is handed out.

    Attributes:
      merged: what has been merged of it, see `_merging_once`.
    """

    def __init__(self, repository: Any) -> None:
        self._repository, self._read, self.merged = repository, {}, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repository, name)

    def __deepcopy__(self, memo: Any) -> "_Read":
        """Hydra takes a copy for every job, whose sources may become others; what has been read is shared."""
        other = _Read(copy.deepcopy(self._repository, memo))
        other._read, other.merged = self._read, self.merged
        return other

    def initialize_sources(self, config_search_path: Any) -> None:
        """From other sources other files are read."""
        self._read, self.merged = {}, {}
        self._repository.initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> Any:
        """Return a copy of a config of its own to everyone."""
        if config_path not in self._read:
            self._read[config_path] = pickle.dumps(self._repository.load_config(config_path=config_path))
        return pickle.loads(self._read[config_path])
