"""What befalls a fleet while its nodes save, and when: data, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

NODE, LINK, STORE, MONGOD = KINDS = ("node", "link", "store", "mongod")


@dataclass(frozen=True, slots=True)
class Victim:
    """A node, the network of a node, the S3 server, or a member of the replica set; all are counted from 0."""

    kind: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Blow:
    """Once so many files of a round are handed over, the victims are killed, or cut off.

    Nodes are started again at once; servers, and networks that are mended, once `down` more files are handed over.
    """

    after: int
    down: int
    victims: tuple[Victim, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Each node hands `files` files over, in as many rounds as there are blows."""

    seed: int
    files: int
    blows: tuple[Blow, ...]

    @property
    def a_round(self) -> int:
        """Files that a node hands over in a round."""
        return self.files // len(self.blows)


def drawn(seed: int, *, files: int, blows: int, nodes: int, members: int) -> Schedule:
    """The schedule of a seed: each blow meets two or three kinds.

    `files` are what each node hands over, or a few less: rounds are of one size.
    """
    chance = random.Random(seed)
    a_round = files // blows
    made = []
    for _ in range(blows):
        after = chance.randint(1, a_round * nodes)
        down = chance.randint(0, a_round * nodes - after)
        kinds = sorted(chance.sample(KINDS, chance.randint(2, 3)))
        made.append(Blow(after, down, tuple(each for kind in kinds for each in _victims(kind, chance, nodes, members))))
    return Schedule(seed, a_round * blows, tuple(made))


def _victims(kind: str, chance: random.Random, nodes: int, members: int) -> list[Victim]:
    """One node or network, or some, or all; some members, or all: without a majority nothing is written."""
    if kind == STORE:
        return [Victim(STORE)]
    there = members if kind == MONGOD else nodes
    return [Victim(kind, number) for number in sorted(chance.sample(range(there), chance.randint(1, there)))]
