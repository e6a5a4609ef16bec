"""Steps grouped as the modules that they were traced in: each group becomes the ``forward`` of a class.

Semantics
- A group is a run of neighbouring steps; it takes what was made outside and gives what is read outside.
- A module is dissolved, and its steps belong to the module around it, where it holds nothing of its own (a function
  wrapped in a class), where its steps are no run, or where it uses layers from elsewhere.
- A module that runs several times is written once where its calls are alike, else dissolved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.fx import Node

from mbs_fx.exporting.steps import Chain


@dataclass(eq=False)
class Region:
    """One call of a module: its steps and the calls inside, in order."""

    key: str
    path: str
    kind: str
    items: list[Node | Region] = field(default_factory=list["Node | Region"])

    def nodes(self) -> Iterator[Node]:
        """Every step inside, at any depth."""
        for item in self.items:
            if isinstance(item, Region):
                yield from item.nodes()
            else:
                yield item

    def regions(self) -> Iterator[Region]:
        """Itself and every region inside, innermost first."""
        for item in self.items:
            if isinstance(item, Region):
                yield from item.regions()
        yield self

    def inputs(self) -> list[Node]:
        """What was made outside and is read inside, in the order of reading."""
        own = set(self.nodes())
        read = (argument for node in self.nodes() for argument in node.all_input_nodes)
        return [*dict.fromkeys(a for a in read if a not in own and a.op != "get_attr")]

    def outputs(self) -> list[Node]:
        """What is made inside and read outside."""
        own = set(self.nodes())
        return [node for node in self.nodes() if any(user not in own for user in node.users)]


def grouped(nodes: list[Node], chain_of: dict[Node, Chain], name: str, dissolved: set[str]) -> Region:
    """The whole network as a region; paths that have to be dissolved are added to ``dissolved``."""
    while True:
        root = Region("", "", name)
        _fill(root, nodes, {n: tuple(e for e in chain_of[n] if e[1] not in dissolved) for n in nodes}, 0)
        wrong = _to_dissolve(root)
        if not wrong:
            return root
        dissolved |= wrong


def _fill(region: Region, nodes: list[Node], chain_of: dict[Node, Chain], depth: int) -> None:
    """Put steps, and runs of steps that are one call of a module, into a region."""
    run: list[Node] = []
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        chain = chain_of[node]
        if len(chain) <= depth:
            region.items.append(node)
            continue
        run.append(node)
        key, path, kind = chain[depth]
        after = chain_of[following] if following is not None else ()
        if len(after) <= depth or after[depth][0] != key:
            inner = Region(key, path, kind)
            _fill(inner, run, chain_of, depth + 1)
            region.items.append(inner)
            run = []


def _to_dissolve(root: Region) -> set[str]:
    wrong: set[str] = set()
    in_chains = {item for region in root.regions() if region.kind == "Sequential" for item in region.items}
    for region in root.regions():
        keys = [item.key for item in region.items if isinstance(item, Region)]
        wrong |= {item.path for item in region.items if isinstance(item, Region) and keys.count(item.key) > 1}
        if region is root:
            continue
        held = [str(node.target) for node in region.nodes() if node.op == "call_module"]
        read = [str(a.target) for node in region.nodes() for a in node.all_input_nodes if a.op == "get_attr"]
        inside = all(target.startswith(f"{region.path}.") for target in (*held, *read))
        empty = not (held or read) and region not in in_chains
        if empty or not inside or not region.outputs():
            wrong.add(region.path)
    return wrong
