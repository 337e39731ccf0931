"""Who is next: the tenant that was served least, and of that tenant's sequences the one that came first.

A tenant's account is the tokens that the model read for it. One that comes back after a pause starts where the queue is
now and not where it left, so that nobody saves up turns. It is the virtual token counter of Sheng et al., 2024,
"Fairness in Serving Large Language Models": start-time fair queueing (Goyal et al., 1996) at the cost that an answer
turns out to have.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import takewhile

from qkv.serve.sequence import Sequence

REMEMBERED = 1024  # tenants with nothing to do


@dataclass(slots=True)
class _Tenant:
    served: int
    waiting: deque[Sequence] = field(default_factory=deque)


class FairQueue:
    """The waiting sequences, those of one tenant in the order they came, those that lost their pages first."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._count = 0
        self._now = 0  # the account of the tenant that was last admitted

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for tenant in self._tenants.values() for sequence in tenant.waiting)

    def served(self, tenant: str) -> int:
        """A tenant's account: the tokens that were read for it, and those it missed while it had nothing to ask."""
        return self._tenants[tenant].served if tenant in self._tenants else self._now

    def add(self, sequence: Sequence) -> None:
        """Behind its tenant's others."""
        self._awake(sequence.tenant).waiting.append(sequence)
        self._count += 1

    def put_back(self, sequence: Sequence) -> None:
        """Before its tenant's others, except such as were admitted earlier and are here again too."""
        waiting, order = self._awake(sequence.tenant).waiting, sequence.order or 0
        earlier = takewhile(lambda other: other.order is not None and other.order < order, waiting)
        waiting.insert(sum(1 for _ in earlier), sequence)
        self._count += 1

    def remove(self, sequence: Sequence) -> None:
        """It no longer wants to be served."""
        self._tenants[sequence.tenant].waiting.remove(sequence)
        self._count -= 1

    def admit(self, sequence: Sequence) -> None:
        """It is served from now on."""
        self.remove(sequence)
        self._now = max(self._now, self._tenants[sequence.tenant].served)

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """The first `tokens` of it are on its tenant's account, each once however often it is read."""
        if tokens > sequence.charged:
            tenant = self._tenants.get(sequence.tenant) or self._awake(sequence.tenant)
            tenant.served += tokens - sequence.charged
            sequence.charged = tokens

    def in_turn(self) -> Iterator[Sequence]:
        """All that wait, in the order in which they should be served as the accounts are now."""
        turns = [self._turns(tenant, at) for at, tenant in enumerate(self._tenants.values()) if tenant.waiting]
        return (sequence for _, _, sequence in merge(*turns, key=lambda turn: turn[:2]))

    def _turns(self, tenant: _Tenant, at: int) -> Iterator[tuple[int, int, Sequence]]:
        """A tenant's sequences with its account before each."""
        account = tenant.served
        for sequence in tenant.waiting:
            yield account, at, sequence
            account += len(sequence.ids) - sequence.charged

    def _awake(self, name: str) -> _Tenant:
        """A tenant that has something to do."""
        tenant = self._tenants.get(name)
        if tenant is None:
            if len(self._tenants) >= REMEMBERED:
                self._tenants = {n: t for n, t in self._tenants.items() if t.waiting or t.served > self._now}
            tenant = self._tenants[name] = _Tenant(self._now)
        if not tenant.waiting:
            tenant.served = max(tenant.served, self._now)
        return tenant
