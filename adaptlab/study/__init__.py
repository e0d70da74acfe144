"""Studies: many runs over one base, each resumable, all in one folder. What experiments are written with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "app": ["app"],
        "bases": ["base_app", "open_moments"],
        "pretraining": ["open_pretraining", "pretrain", "pretraining_passport"],
        "final_updates": ["FinalUpdates", "final_updates"],
        "folder": ["StudyError", "identity", "locked", "open_folder", "starts"],
        "halving": ["Halving", "successive_halving"],
        "labelled": ["Texts", "open_labelled_lab"],
        "lab": ["Lab", "open_base", "open_lab"],
        "ladder.labs": ["LadderText", "open_ladder_text"],
        "ladder.laws": ["fit_laws", "law"],
        "ladder.plan": ["plan_ladder"],
        "ladder.points": ["save_forgetting", "save_points", "with_transfer"],
        "ladder.predictions": ["make_predictions", "score", "seal"],
        "ladder.report": ["publish_ladder"],
        "ladder.runs": ["keep_bases", "run_rung"],
        "landscape.labs": ["FinalLandscape", "at_own_rate", "open_labs", "twins"],
        "landscape.lines": ["straight_lines"],
        "landscape.report": ["publish_landscape"],
        "landscape.spectra": ["spectra"],
        "landscape.surfaces": ["surfaces"],
        "members": ["PARTS", "Member", "members", "method_program"],
        "provenance": ["passport", "publish"],
        "reward": ["base_losses", "reward_value", "trained_parameters"],
        "run": ["run_members", "value"],
        "search": [
            "Configuration",
            "Space",
            "configured",
            "describe",
            "publish_search",
            "sample",
            "search_value",
            "with_fresh_text",
        ],
        "settings": ["Base", "HeldOut", "Measured", "Method", "Probed", "Replication", "Training", "Wandb"],
    },
)
