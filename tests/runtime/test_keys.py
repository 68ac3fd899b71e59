"""Keys are shown once, believed while they are valid, and tell nothing when they are not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from agent_orchestra.core.access import Key, Scope
from agent_orchestra.errors import KeyNotFound, Unauthenticated
from agent_orchestra.runtime.keys import Keys
from agent_orchestra.testing import temporary_orchestra


class CountedStore:
    """Keeps keys in memory, and counts how often one was looked up."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.lookups = 0

    async def add(self, key: Key) -> None:
        self.keys[key.id] = key

    async def get(self, key_id: str) -> Key | None:
        self.lookups += 1
        return self.keys.get(key_id)

    async def find(self, tenant: str | None) -> Sequence[Key]:
        return [key for key in self.keys.values() if tenant in (None, key.tenant)]

    async def revoke(self, key_id: str, now_ms: int) -> Key:
        raise KeyNotFound(key_id)


async def test_a_key_opens_what_it_was_made_for() -> None:
    async with temporary_orchestra() as orchestra:
        key, text = await orchestra.keys.create("acme", [Scope.READ, Scope.RUN, Scope.READ])
        assert text.startswith(f"orc_{key.id}_")
        assert key.scopes == (Scope.READ, Scope.RUN)
        principal = await orchestra.keys.authenticate(text)
        assert (principal.tenant, principal.scopes, principal.key_id) == (
            "acme",
            frozenset({Scope.READ, Scope.RUN}),
            key.id,
        )
        assert await orchestra.keys.authenticate(text) == principal


async def test_only_a_digest_of_the_secret_is_kept() -> None:
    async with temporary_orchestra() as orchestra:
        key, text = await orchestra.keys.create("acme", [Scope.RUN])
        secret = text.removeprefix(f"orc_{key.id}_")
        assert len(secret) >= 43, "256 bits"
        (kept,) = await orchestra.keys.find()
        assert kept == key
        assert kept.digest == hashlib.sha256(secret.encode()).hexdigest()
        assert secret not in repr(kept)


async def test_no_two_keys_are_alike() -> None:
    keys = Keys(CountedStore())
    made = [await keys.create("acme", [Scope.RUN]) for _ in range(50)]
    assert len({key.id for key, _ in made}) == len({text for _, text in made}) == 50


async def test_whatever_is_wrong_gets_the_same_sentence() -> None:
    async with temporary_orchestra() as orchestra:
        key, text = await orchestra.keys.create("acme", [Scope.RUN])
        _, other = await orchestra.keys.create("acme", [Scope.RUN])
        secret = text.removeprefix(f"orc_{key.id}_")
        revoked, revoked_text = await orchestra.keys.create("acme", [Scope.RUN])
        await orchestra.keys.revoke(revoked.id)
        wrong = [
            "",
            "orc",
            "orc__",
            f"orc__{secret}",
            f"orc_{key.id}_",
            f"orc_{key.id}",
            f"ork_{key.id}_{secret}",
            f"orc_{key.id}_{secret}x",
            f"orc_{key.id}_{other.split('_', 2)[2]}",
            f"orc_{key.id.upper() + 'x'}_{secret}",
            f"orc_{'f' * 12}_{secret}",
            f" {text}",
            f"{text}\n",
            f"orc_{key.id}_\ud800",
            f"orc_\0_{secret}",
            f"orc_\u0661_{secret}",
            key.digest,
            f"orc_{key.id}_{key.digest}",
            revoked_text,
        ]
        details: set[str] = set()
        for candidate in wrong:
            with pytest.raises(Unauthenticated) as caught:
                await orchestra.keys.authenticate(candidate)
            details.add(caught.value.detail)
            assert caught.value.data == {}
        assert len(details) == 1
        assert (await orchestra.keys.authenticate(text)).key_id == key.id


async def test_a_revoked_key_ends_at_once_where_it_was_revoked() -> None:
    async with temporary_orchestra() as orchestra:
        key, text = await orchestra.keys.create("acme", [Scope.RUN])
        await orchestra.keys.authenticate(text)
        revoked = await orchestra.keys.revoke(key.id)
        assert revoked.revoked_ms is not None
        with pytest.raises(Unauthenticated):
            await orchestra.keys.authenticate(text)
        assert await orchestra.keys.revoke(key.id) == revoked
        with pytest.raises(KeyNotFound):
            await orchestra.keys.revoke("gone")


async def test_keys_are_found_by_tenant() -> None:
    async with temporary_orchestra() as orchestra:
        mine, text = await orchestra.keys.create("mine", [Scope.READ])
        theirs, _ = await orchestra.keys.create("theirs", [Scope.ADMIN])
        assert await orchestra.keys.find("mine") == [mine]
        assert await orchestra.keys.find("theirs") == [theirs]
        assert {key.id for key in await orchestra.keys.find()} == {mine.id, theirs.id}
        assert await orchestra.keys.find("nobody") == []
        assert (await orchestra.keys.authenticate(text)).tenant == "mine"


async def test_a_checked_key_is_believed_and_a_wrong_one_never() -> None:
    store = CountedStore()
    keys = Keys(store)
    _, text = await keys.create("acme", [Scope.RUN])
    for _ in range(3):
        await keys.authenticate(text)
    assert store.lookups == 1
    for number in range(3):
        with pytest.raises(Unauthenticated):
            await keys.authenticate(f"{text}x")
        assert store.lookups == 2 + number
