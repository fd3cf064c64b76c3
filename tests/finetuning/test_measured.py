"""Which held-out loss counts as the best one."""

from discord_lora.finetuning.measured import Measured


def losses(*values, messages=10):
    measured = Measured()
    for step, value in enumerate(values, start=1):
        measured.note(step, {"nats_per_token": value}, messages, "these")
    return measured


def test_the_best_is_the_lowest_and_the_first_of_equals():
    measured = losses(3.0, 2.0, 2.5, 2.0)
    assert (measured.best_step, measured.worse, measured.last_step) == (2, 2, 4)
    assert not measured.is_out_of_patience(3) and measured.is_out_of_patience(2)
    assert not measured.is_out_of_patience(0)


def test_the_best_is_one_that_could_be_saved():
    measured, saved = losses(3.0, 2.0, 1.0), losses(3.0, 2.0)
    measured.lose_best(saved)
    assert (measured.best_step, measured.best, measured.worse) == (2, {"nats_per_token": 2.0}, 0)
    measured.note(4, {"nats_per_token": 1.5}, 10, "these")
    assert (measured.best_step, measured.worse) == (4, 0)
    measured.lose_best(losses(1.2, messages=9))
    assert (measured.best_step, measured.best) == (0, {}), "over other messages"


def test_losses_over_other_messages_do_not_compare():
    """Some were set aside, or the data changed; those now may be the harder ones."""
    for messages, data in ((9, "these"), (10, "others")):
        measured = losses(3.0, 2.0, 2.5)
        measured.note(4, {"nats_per_token": 2.8}, messages, data)
        assert (measured.best_step, measured.worse) == (4, 0)
