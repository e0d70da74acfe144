"""A ladder of models: its sizes, runs, laws and predictions."""

from adaptlab.study.ladder.sizes import ladder

__all__ = ["ladder"]
