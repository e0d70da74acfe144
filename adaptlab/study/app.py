"""A study as a command: Hydra in front, a locked folder behind."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptlab import config, runtime
from adaptlab.study import folder as folders

__all__ = ["app"]

log = logging.getLogger(__name__)


def app(name: str, schema: Callable[..., Any]) -> Callable[[Callable[[Any, Path], Any]], Callable[[], Any]]:
    """Return a decorator that makes `f(study, folder)` the command of a study.

    The config `conf/<name>.yaml` is checked and completed before anything loads. The folder is a new one,
    `runs/<name>/<time>`, or the one that a killed process left of this very config (unless `resume=false`);
    it is locked while the study runs and holds `config.yaml`.

    Args:
      name: the primary config.
      schema: the dataclass that `f` gets: its fields are the config's top-level keys.
    """
    folders.register_resolver(schema)

    def decorate(f: Callable[[Any, Path], Any]) -> Callable[[], Any]:
        @config.main(name, schema)
        def task(node: dict[str, Any], folder: Path) -> Any:
            from adaptlab import report  # heavy: not for --help

            runtime.configure()
            with folders.locked(folder):
                for change in folders.open_folder(folder, node, report.surroundings()):
                    log.warning("Resumed, but what the numbers depend on has changed: %s", change)
                (folder / "config.yaml").write_text(config.to_yaml(node))
                return f(schema(**node), folder)

        return task

    return decorate
