"""What a base that was trained here comes with: its optimiser's state."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptlab import config

if TYPE_CHECKING:
    from adaptlab.shard import Placement

__all__ = ["open_moments"]


def open_moments(
    base: Mapping[str, Any], fingerprint: str | None = None, placement: "Placement | None" = None
) -> dict[str, Any]:
    """Load the optimiser's state that a base was trained with: what `adaptlab.optim.carry` takes over.

    Args:
      base: the config of the base, see `Base`.
      fingerprint: of the base's weights, to be sure that the state belongs to them.
      placement: where it shall lie, each moment as its weight; None leaves it on the host.

    Raises:
      ConfigError: the base has none.
    """
    if base.get("optimizer") is None:
        raise config.ConfigError(
            "base.optimizer=None: nothing is known of the optimiser this base was trained with, so there is no state "
            "to carry over. Choose base=small (`python -m experiments.pretrain` makes it), give a file that "
            "adaptlab.optim.save_moments wrote (+base.optimizer={_target_: adaptlab.source.local, path: FILE}), or "
            "start the optimiser afresh."
        )
    from adaptlab.optim.carry import load_moments

    moments = load_moments(config.instantiate(base["optimizer"]).fetch(), base=fingerprint)
    return moments if placement is None else _placed(moments, placement)


def _placed(moments: dict[str, Any], placement: "Placement") -> dict[str, Any]:
    from adaptlab import shard

    def put(x: Any) -> Any:
        """A moment has the tree of the weights; counts and betas are scalars."""
        if isinstance(x, Mapping):
            return shard.place(x, placement.shardings(placement.axes, x))
        return shard.put(x, placement.replicated)

    return {kind: {name: put(x) for name, x in state.items()} for kind, state in moments.items()}
