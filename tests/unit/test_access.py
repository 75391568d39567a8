"""Who may do what, and how many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash.errors import AccessError
from ml_dashd.core.access import Policy, Right, has_room
from ml_dashd.core.model import EVERYBODY, FileRecord, Scope

ME, USER, ADMIN, READER, ROOT, STRANGER, WRITER = 500, 1000, 1001, 1002, 0, 1003, 1004
POLICY = Policy(
    ME, frozenset({USER, ROOT}), frozenset({ADMIN}), {"vision": frozenset({READER, USER}), "x": frozenset()}
)


def record(owner: int, namespace: str = "vision") -> FileRecord:
    return FileRecord(1, owner, namespace, "cv", "resnet", "", "best.pt", 0, "", 0, 0)


@pytest.mark.parametrize(
    ("uid", "connects", "admin"),
    [(ME, True, True), (USER, True, False), (ADMIN, True, True), (READER, True, False), (ROOT, True, False),
     (STRANGER, False, False)],
)  # fmt: skip
def test_who_may_connect(uid: int, connects: bool, admin: bool) -> None:
    assert (POLICY.may_connect(uid), POLICY.is_admin(uid)) == (connects, admin)


@pytest.mark.parametrize("namespace", ["vision", "x", "speech"])
@pytest.mark.parametrize("owner", [ME, USER, ADMIN, READER, ROOT])
@pytest.mark.parametrize("uid", [ME, USER, ADMIN, READER, ROOT, STRANGER])
def test_what_each_may_do(uid: int, owner: int, namespace: str) -> None:
    file = record(owner, namespace)
    rules = uid == owner or uid in (ME, ADMIN)
    reads = rules or (namespace == "vision" and uid in (READER, USER))
    assert POLICY.may(Right.CHANGE, uid, file) == rules
    assert POLICY.may(Right.READ, uid, file) == reads
    assert POLICY.scope(uid).holds(file) == reads


@pytest.mark.parametrize(("uid", "refused"), [(ME, 0), (ADMIN, 0), (WRITER, 1), (USER, 2), (READER, 2), (ROOT, 2)])
def test_who_may_write_in_a_namespace(uid: int, refused: int) -> None:
    """One that is not named is open to whoever is served; one without writers to admins alone."""
    policy = Policy(ME, POLICY.uids, POLICY.admins, POLICY.read, {"vision": frozenset({WRITER}), "x": frozenset()})
    seen = []
    for namespace in ("speech", "vision", "x"):
        try:
            policy.check_write(uid, namespace)
        except AccessError as denied:
            assert f"uid {uid} may not write in the namespace {namespace}" in denied.message  # noqa: PT017
            assert denied.hint == f"ask the operator to name it in access.write.{namespace}"  # noqa: PT017
            seen.append(namespace)
    assert seen == ["vision", "x"][2 - refused :]
    assert policy.may_connect(uid)
    assert not policy.may_connect(STRANGER)


def test_root_rules_only_where_it_is_the_daemons_own_user() -> None:
    assert not Policy(ME).may_connect(ROOT)
    assert Policy(ROOT).may(Right.CHANGE, ROOT, record(USER))
    assert not Policy(ROOT).may(Right.CHANGE, USER, record(ROOT))


def test_a_scope_names_what_a_query_needs() -> None:
    assert POLICY.scope(ADMIN) == EVERYBODY
    assert POLICY.scope(READER) == Scope(READER, frozenset({"vision"}))
    assert POLICY.scope(ROOT) == Scope(ROOT)


def test_a_daemon_is_shared_as_soon_as_somebody_else_is_named() -> None:
    assert not Policy(ME).shared
    assert not Policy(ME, frozenset({ME}), frozenset({ME}), {"x": frozenset({ME})}).shared
    assert Policy(ME, frozenset({USER})).shared
    assert Policy(ME, admins=frozenset({USER})).shared
    assert Policy(ME, read={"x": frozenset({USER})}).shared
    assert Policy(ME, write={"x": frozenset({USER})}).shared


def test_who_shares_with_nobody_may_have_all() -> None:
    assert has_room(9, 9, 10, shared=False)
    assert not has_room(10, 10, 10, shared=False)


@given(st.integers(1, 200), st.integers(1, 6))
def test_users_who_take_what_they_get_leave_room_for_another(most: int, users: int) -> None:
    has = [0] * users
    while any(taken := [has_room(mine, sum(has), most, shared=True) for mine in has]):
        for user, takes in enumerate(taken):
            if takes and has_room(has[user], sum(has), most, shared=True):
                has[user] += 1
    assert max(has) - min(has) <= 1
    assert min(has) >= most // (users + 1)
    assert has_room(0, sum(has), most, shared=True) == (most > users)
