"""What stays in memory: the least recently used goes first, and never what somebody uses."""

from models.residents import Residents


def test_the_least_recently_used_goes_first() -> None:
    residents = Residents(100)
    first, second, third = (residents.add(key, key.upper(), 30) for key in ("a", "b", "c"))
    residents.use([first])
    residents.leave([first])
    assert residents.left == 10
    assert residents.evict([]) == ["B"]
    assert residents.evict([]) == ["C"]
    assert (first.item, second.item, third.item) == ("A", None, None)
    assert (residents.left, residents.evictions, len(residents)) == (70, 2, 1)


def test_what_is_used_or_kept_stays() -> None:
    residents = Residents(100)
    used, kept, idle = (residents.add(key, key, 30) for key in ("used", "kept", "idle"))
    residents.use([used])
    residents.use([used])
    residents.leave([used])
    assert residents.evict([kept]) == ["idle"]
    assert residents.evict([kept]) == []
    residents.leave([used])
    assert residents.evict([kept]) == ["used"]
    assert idle.item is None


def test_a_backbone_takes_its_adapters_along_and_an_adapter_goes_alone() -> None:
    residents = Residents(100)
    backbone = residents.add("backbone", "backbone", 50)
    other = residents.add("other", "other", 10)
    old, new = (residents.add(key, key, 5, on=backbone) for key in ("old", "new"))
    residents.use([old, new, backbone])
    residents.leave([old, new, backbone])
    assert residents.evict([other]) == ["old"]
    residents.use([new])
    residents.leave([new])
    assert residents.evict([other]) == ["backbone", "new"]
    assert residents.find(["backbone", "old", "new", "other"]) == [other]


def test_nobody_becomes_a_user_of_a_part() -> None:
    residents = Residents(100)
    gone, there = residents.add("gone", "gone", 1), residents.add("there", "there", 1)
    residents.evict([])
    assert not residents.use([there, gone])
    assert there.users == 0
