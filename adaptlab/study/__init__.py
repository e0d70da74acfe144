"""Studies: many runs over one base, each resumable, all in one folder. What experiments are written with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "app": ["app"],
        "folder": ["StudyError", "identity", "locked", "open_folder", "starts"],
        "lab": ["Lab", "open_base", "open_lab"],
        "provenance": ["passport"],
        "members": ["Member", "members", "method_program"],
        "run": ["run_member", "run_members"],
        "settings": ["Base", "HeldOut", "Method", "Training", "Wandb"],
    },
)
