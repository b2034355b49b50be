"""What the client of the torture does: a list of turns that depends on nothing but its length.

Knows nothing of the SDK, of servers or of faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "supervised",  # forward_backward, optim_step
    "accumulated",  # two forward_backwards of different losses, then the step
    "looked_at",  # a forward between forward_backward and step, which changes nothing
    "custom",  # a loss that the client itself computes
    "traced",  # a loss that the client defines and the engine computes
    "rollouts",  # as in reinforcement learning: copy the weights, sample from them, train on that
    "sampled_again",  # from the copy of an earlier turn, though the weights went on
    "saved",  # save_state
    "saved_for_sampling",  # save_weights_for_sampler, and a sample from the file
    "went_back",  # load_state of an earlier save_state into the living run
    "moved",  # into a new run that starts from a checkpoint
    "forked",  # a new run is made of one of this run's earlier steps, and looked at
    "controlled",  # a person changes the learning rate, for a while
    "rewound",  # a person takes the run back some steps
]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Mostly training, as life is. What needs an earlier turn comes behind it.
_ROUND: tuple[Kind, ...] = (
    "supervised",
    "rollouts",
    "accumulated",
    "sampled_again",
    "looked_at",
    "saved",
    "custom",
    "rollouts",
    "supervised",
    "saved_for_sampling",
    "accumulated",
    "sampled_again",
    "went_back",
    "supervised",
    "rollouts",
    "moved",
    "controlled",
    "traced",
    "forked",
    "supervised",
    "rewound",
)


@dataclass(frozen=True)
class Turn:
    """A few operations that belong together; `number` also seeds what is random in them."""

    number: int
    kind: Kind


def turns(count: int, kinds: Sequence[Kind] = _ROUND) -> list[Turn]:
    """`count` turns of these kinds, in a circle; some twenty of the usual ones contain every
    kind."""
    return [Turn(number, kinds[number % len(kinds)]) for number in range(count)]
