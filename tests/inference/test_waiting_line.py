from types import SimpleNamespace

from discord_lora.inference.waiting_line import WaitingLine


def somebody(name, addressed=True):
    return SimpleNamespace(name=name, addressed=addressed)


def names(line):
    return [it.name for it in line]


def test_the_oldest_that_nobody_asked_for_goes_first_when_it_is_full():
    line = WaitingLine(3)
    for it in (somebody("a"), somebody("b", False), somebody("c", False)):
        assert line.join(it) is None
    assert line.join(somebody("d")).name == "b"
    assert line.join(somebody("e", False)).name == "c"
    assert names(line) == ["a", "d", "e"]


def test_a_full_line_of_addressed_takes_nobody():
    line = WaitingLine(1)
    line.join(somebody("a"))
    for addressed in (True, False):
        new = somebody("b", addressed)
        assert line.join(new) is new
    assert names(line) == ["a"]


def test_the_addressed_are_next_each_kind_in_order_of_arrival():
    line = WaitingLine(5)
    for it in (somebody("a", False), somebody("b"), somebody("c", False), somebody("d")):
        line.join(it)
    order = []
    while (it := line.peek()) is not None:
        order.append(it.name)
        line.remove(it)
    assert order == ["b", "d", "a", "c"]


def test_who_is_put_back_is_next_even_in_a_full_line():
    line = WaitingLine(1)
    line.join(somebody("a"))
    line.put_back(somebody("b"))
    assert line.peek().name == "b"
    assert len(line) == 2
