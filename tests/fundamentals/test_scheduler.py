"""The scheduler: everything ends, within its limits, and leaves no block behind."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BLOCK_SIZE = 4
PROMPT = st.tuples(st.integers(0, 1), st.integers(1, 30))
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 20), st.lists(PROMPT, min_size=1, max_size=3), st.integers(1, 20), st.booleans()),
    min_size=1,
    max_size=12,
)
CANCELS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 11)), max_size=5)
LIMITS = st.fixed_dictionaries({"max_running": st.integers(1, 6), "prefill_tokens": st.integers(1, 12)})


def blocks_to_hold(prompts: list[tuple[int, int]], new_tokens: int, backbone: int) -> int:
    return sum(-(-(tokens + new_tokens) // BLOCK_SIZE) for index, tokens in prompts if index == backbone)


@settings(
    deadline=None, derandomize=True, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ARRIVALS, CANCELS, LIMITS, st.integers(0, 6), st.booleans())
def test_all_that_fits_alone_ends_and_no_block_leaks(
    simulate: Any, arrivals: list[Any], cancels: list[tuple[int, int]], limits: dict[str, int], spare: int, same: bool
) -> None:
    """Memory for the largest sequence alone and a little more: much preemption, arrivals and cancels at any step."""
    blocks = [spare + max(blocks_to_hold(prompts, new, one) for _, prompts, new, _ in arrivals) for one in (0, 1)]
    world = simulate([max(count, 1) for count in blocks], BLOCK_SIZE, **limits)
    world.same_beginnings = same
    cancelled = []
    for step in range(41):
        for at, prompts, new_tokens, is_given in arrivals:
            if at == step:
                (world.add_scored if is_given else world.add)(prompts, new_tokens)
        for at, index in cancels:
            if at == step and index < len(world.added):
                sample = world.added[index]
                world.scheduler.remove([sample])
                cancelled.append(sample)
        world.step()
    world.run()
    for sample in world.added:
        assert sample in world.finished or sample in cancelled
    assert world.scheduler.running == []
    assert not world.scheduler.waiting
    assert [backbone.pool.free for backbone in world.backbones] == [b.pool.count for b in world.backbones]


@settings(
    deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PROMPT, min_size=1, max_size=3), st.integers(1, 12), st.integers(1, 12))
def test_a_sequence_alone_takes_the_fewest_steps(
    simulate: Any, prompts: list[tuple[int, int]], new_tokens: int, budget: int
) -> None:
    """Its prompts share a backbone's budget, their last tokens and the decodes are free of it."""
    world = simulate(prefill_tokens=budget)
    world.add(prompts, new_tokens)
    needed = [sum(tokens - 1 for index, tokens in prompts if index == backbone) for backbone in (0, 1)]
    prefill_only = max(-(-tokens // budget) for tokens in needed)
    assert world.run() == max(prefill_only, 1) + new_tokens - 1


def test_prompts_of_uneven_length_end_in_the_same_step(simulate: Any) -> None:
    world = simulate(prefill_tokens=5)
    sample = world.add([(0, 3), (1, 17)], 2)
    plans = [world.step() for _ in range(4)]
    assert [len(plan.ready) for plan in plans] == [0, 0, 0, 1]
    assert [stream.cached for stream in sample.streams] == [3, 17]


def test_a_scored_response_runs_within_the_budget_and_each_stream_at_its_own_pace(simulate: Any) -> None:
    world = simulate(prefill_tokens=5)
    sample = world.add_scored([(0, 3), (1, 7)], 6)
    plans = [world.step() for _ in range(3)]
    assert [[chunk.count for chunk in plan.chunks[world.backbones[0]]] for plan in plans[:2]] == [[5], [3]]
    assert [plan.chunks[world.backbones[1]][0].wants for plan in plans] == [0, 4, 2]
    assert [plan.scored for plan in plans] == [[], [], [sample]]


def test_a_scored_response_shares_its_prompt_up_to_the_first_wanted_logits(simulate: Any) -> None:
    world = simulate(prefill_tokens=100)
    world.same_beginnings = True
    for _ in range(2):
        world.add_scored([(0, 8)], 9)
    assert [chunk.count for chunk in world.step().chunks[world.backbones[0]]] == [16, 12]


def test_admits_in_order_up_to_its_limit(simulate: Any) -> None:
    world = simulate(max_running=2)
    first, second, third = (world.add([(0, 2)], new_tokens) for new_tokens in (3, 1, 2))
    world.step()
    assert world.finished == [second]
    world.step()
    assert world.scheduler.running == [first, third]
    world.run()
    assert world.finished == [second, first, third]


def test_decodes_go_on_beside_a_long_prefill(simulate: Any) -> None:
    world = simulate(prefill_tokens=4)
    short = world.add([(0, 2)], 10)
    world.step()
    long = world.add([(0, 21)], 1)
    for count in range(2, 7):
        world.step()
        assert len(short.response) == count
    assert long in world.finished


def test_one_long_prompt_does_not_stop_another_backbone(simulate: Any) -> None:
    world = simulate(prefill_tokens=4)
    world.add([(0, 40)], 1)
    other = world.add([(1, 3)], 1)
    world.step()
    assert world.finished == [other]


def test_the_youngest_gives_way_and_comes_back(simulate: Any) -> None:
    world = simulate([5], BLOCK_SIZE)
    old = world.add([(0, 4)], 12)
    young = world.add([(0, 4)], 12)
    while not world.scheduler.preemptions:
        world.step()
    assert world.scheduler.running == [old]
    assert list(world.scheduler.waiting) == [young]
    kept = list(young.response)
    world.run()
    assert world.finished == [old, young]
    assert young.response[: len(kept)] == kept
    assert len(young.response) == 12


def test_a_preempted_sequence_comes_before_newer_ones(simulate: Any) -> None:
    world = simulate([5], BLOCK_SIZE)
    old, young, newer = (world.add([(0, 4)], 12) for _ in range(3))
    world.run()
    assert world.scheduler.preemptions > 0
    assert world.finished == [old, young, newer]


def test_does_not_admit_what_would_starve_the_running(simulate: Any) -> None:
    world = simulate([3], BLOCK_SIZE)
    first = world.add([(0, 4)], 4)
    world.step()
    second = world.add([(0, 4)], 4)
    world.step()
    assert world.scheduler.running == [first]  # it has two blocks, and the third is what it may grow into
    world.run()
    assert world.finished == [first, second]
    assert world.scheduler.preemptions == 0


def test_each_stream_of_the_running_has_a_block_to_grow_into(simulate: Any) -> None:
    world = simulate([8], BLOCK_SIZE, prefill_tokens=100)
    first = world.add([(0, 4), (0, 4), (0, 4)], 2)  # as with two ARMs that ride on the base
    world.step()
    second = world.add([(0, 4)], 1)
    world.step()
    assert world.finished == [first]  # its next token and one block for each stream, which leaves no room
    world.run()
    assert world.finished == [first, second]
    assert world.scheduler.preemptions == 0


def test_the_running_hold_up_nobody_in_the_caches_of_others(simulate: Any) -> None:
    world = simulate([20, 2], BLOCK_SIZE)
    for _ in range(3):
        world.add([(0, 4)], 4)
    other = world.add([(1, 4)], 1)
    world.step()
    assert other in world.finished


def test_removing_what_waits_or_runs_or_is_gone(simulate: Any) -> None:
    world = simulate(max_running=1)
    running = world.add([(0, 9)], 4)
    waiting = world.add([(0, 9)], 4)
    world.step()
    world.scheduler.remove([running, waiting])
    world.scheduler.remove([running])
    assert world.run() == 0
    world.check_blocks()


def test_those_who_wait_are_looked_at_only_when_one_of_them_goes(simulate: Any) -> None:
    world = simulate(max_running=1)
    running, first, second = (world.add([(0, 4)], 4) for _ in range(3))
    world.step()
    waiting = world.scheduler.waiting
    world.scheduler.remove([running])
    assert world.scheduler.waiting is waiting
    world.scheduler.remove([first])
    assert list(world.scheduler.waiting) == [second]


def test_nothing_to_do_is_an_empty_plan(simulate: Any) -> None:
    assert simulate().step().chunks == {}


def test_samples_of_a_prompt_run_it_once_in_the_same_step(simulate: Any) -> None:
    world = simulate(prefill_tokens=100)
    world.same_beginnings = True
    samples = [world.add([(0, 18), (1, 11)], 2) for _ in range(4)]
    plan = world.step()
    first, second = world.backbones
    assert [chunk.count for chunk in plan.chunks[first]] == [18, 2, 2, 2]  # four blocks of four are shared
    assert [chunk.count for chunk in plan.chunks[second]] == [11, 3, 3, 3]
    assert plan.ready == samples
    assert first.pool.count - first.pool.free == 4 + 4  # and each has a block of its own


def test_a_prompt_in_chunks_is_shared_once_it_has_been_run(simulate: Any) -> None:
    world = simulate(prefill_tokens=8)
    world.same_beginnings = True
    world.add([(0, 30)], 1)
    world.add([(0, 30)], 1)
    assert world.run() == 4


def test_a_prompt_that_was_run_before_is_shared_while_it_stays(simulate: Any) -> None:
    world = simulate([8], prefill_tokens=100)
    world.same_beginnings = True
    world.add([(0, 16)], 1)
    world.run()
    world.add([(0, 16)], 1)
    (chunk,) = world.step().chunks[world.backbones[0]]
    assert chunk.count == 4  # three blocks of four; the last token has to run, and with it its block
    world.same_beginnings = False
    world.add([(0, 32)], 1)  # needs all the memory
    world.run()
    world.same_beginnings = True
    world.add([(0, 16)], 1)
    (chunk,) = world.step().chunks[world.backbones[0]]
    assert chunk.count == 16


def test_a_block_is_shared_once_it_is_full(simulate: Any) -> None:
    world = simulate(prefill_tokens=6)
    world.same_beginnings = True
    first = world.add([(0, 14)], 1)
    world.step()
    world.scheduler.remove([first])  # it leaves a block of four, and two tokens of the next
    second = world.add([(0, 14)], 1)
    world.step()
    assert second.streams[0].cached == 4 + 6


def test_adapters_share_nothing(simulate: Any) -> None:
    world = simulate(prefill_tokens=100)
    world.same_beginnings = True
    world.add([(0, 16)], 1)
    world.add([(0, 16)], 1).streams[0].adapter = "other"
    assert [chunk.count for chunk in world.step().chunks[world.backbones[0]]] == [16, 16]


def test_beside_many_decodes_a_long_prompt_goes_in_small_chunks(simulate: Any) -> None:
    world = simulate([4000], prefill_tokens=512, max_running=200)
    for _ in range(40):
        world.add([(0, 2)], 20)
    world.step()
    world.add([(0, 900)], 1)
    chunks = [max(chunk.count for chunk in world.step().chunks[world.backbones[0]]) for _ in range(3)]
    assert chunks == [80, 80, 80]  # two for each decode
    for sample in world.added[:30]:
        world.scheduler.remove([sample])
    for _ in range(12):
        world.add([(0, 2)], 20)
    assert max(chunk.count for chunk in world.step().chunks[world.backbones[0]]) == 512  # more wait than decode


def test_after_a_failed_step_everything_is_computed_again(simulate: Any) -> None:
    world = simulate(prefill_tokens=100)
    world.same_beginnings = True
    first, second, third = (world.add([(0, 18)], 3) for _ in range(3))
    world.step()
    world.scheduler.schedule()  # a step that did not get to run
    world.scheduler.preempt_all()
    assert world.scheduler.running == []
    assert list(world.scheduler.waiting) == [third, first, second]  # the younger half goes first
    assert [chunk.count for chunk in world.step().chunks[world.backbones[0]]] == [19, 3, 3]
    world.run()
    assert world.finished == [third, first, second]
