"""Whose turn it is at what one daemon does for all."""

from ml_dashd.core.rounds import Round, claimed, ended, gone_on

DAY = 24 * 3600 * 1000
LEASE_MS = 6 * 3600 * 1000
NOW = 1000 * DAY


def test_a_round_goes_from_one_to_the_next() -> None:
    mine = claimed(Round(), "me", NOW, DAY, LEASE_MS)
    assert mine == Round("me", NOW + LEASE_MS)
    assert claimed(mine, "other", NOW + LEASE_MS - 1, DAY, LEASE_MS) is None
    assert claimed(mine, "me", NOW + 1, DAY, LEASE_MS) == Round("me", NOW + 1 + LEASE_MS)
    further = gone_on(mine, "there", NOW + 5, LEASE_MS)
    assert further == Round("me", NOW + 5 + LEASE_MS, "there")
    taken = claimed(further, "other", NOW + 5 + LEASE_MS, DAY, LEASE_MS)
    assert taken == Round("other", NOW + 5 + 2 * LEASE_MS, "there")
    done = ended(NOW + 10)
    assert claimed(done, "me", NOW + 9 + DAY, DAY, LEASE_MS) is None
    assert claimed(done, "me", NOW + 10 + DAY, DAY, LEASE_MS) == Round("me", NOW + 10 + DAY + LEASE_MS, "", NOW + 10)


def test_what_a_wrong_clock_has_noted_stops_nobody() -> None:
    """A node whose clock was a year ahead has ended a round, or has died in one."""
    year = 365 * DAY
    assert claimed(ended(NOW + year), "me", NOW, DAY, LEASE_MS) is not None
    assert claimed(Round("other", NOW + year), "me", NOW, DAY, LEASE_MS) is not None
    assert claimed(ended(NOW + LEASE_MS), "me", NOW, DAY, LEASE_MS) is None
    assert claimed(Round("other", NOW + 2 * LEASE_MS), "me", NOW, DAY, LEASE_MS) is None
