"""Who may do what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.access import Scope, allows


@pytest.mark.parametrize(
    ("granted", "allowed"),
    [
        ((), ()),
        ((Scope.READ,), (Scope.READ,)),
        ((Scope.RUN,), (Scope.READ, Scope.RUN)),
        ((Scope.ADMIN,), (Scope.READ, Scope.RUN, Scope.ADMIN)),
        ((Scope.READ, Scope.ADMIN), (Scope.READ, Scope.RUN, Scope.ADMIN)),
    ],
)
def test_each_scope_includes_those_before_it(granted: tuple[Scope, ...], allowed: tuple[Scope, ...]) -> None:
    assert tuple(scope for scope in Scope if allows(granted, scope)) == allowed


@given(st.sets(st.sampled_from(Scope)), st.sampled_from(Scope), st.sampled_from(Scope))
def test_more_scopes_never_allow_less(granted: set[Scope], more: Scope, needed: Scope) -> None:
    assert allows({*granted, more}, needed) >= allows(granted, needed)
    assert allows({needed}, needed)
