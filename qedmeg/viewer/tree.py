"""The calls of a scaffold as a tree: `/` in the path of a call nests it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from qedmeg.viewer.entry import CallBrief

DEEPEST = 40
"""Levels; what is deeper stays in one name."""


@dataclass
class Node:
    """A step of a path."""

    name: str
    calls: list[CallBrief] = field(default_factory=list)
    """Those of exactly this path: more than one where a call was asked again in other words."""
    children: dict[str, "Node"] = field(default_factory=dict)
    """By name."""

    @property
    def below(self) -> int:
        """How many calls lie further down."""
        return sum(len(child.calls) + child.below for child in self.children.values())

    @property
    def tokens(self) -> int:
        """Generated for this and all that lies below. A scaffold in the place of a model has told the sum of its own
        calls itself."""
        own = sum(call.tokens for call in self.calls)
        return own or sum(child.tokens for child in self.children.values())


def call_tree(calls: Sequence[CallBrief]) -> list[Node]:
    """The topmost nodes. Each is where the first call of it or below it was answered."""
    top = Node("")
    for call in calls:
        node = top
        *above, last = call.path.split("/", DEEPEST - 1)
        for name in (*above, last):
            node = node.children.setdefault(name, Node(name))
        node.calls.append(call)
    return list(top.children.values())
