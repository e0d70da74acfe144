"""A study as a command: Hydra in front, a locked folder behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptlab import config, runtime
from adaptlab.study import folder as folders

__all__ = ["app"]


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
            runtime.configure()
            with folders.locked(folder):
                folders.open_folder(folder, node)
                (folder / "config.yaml").write_text(config.to_yaml(node))
                return f(schema(**node), folder)

        return task

    return decorate
