"""The sample of waits between chunks: exact while it can be, bounded and fair beyond."""

from __future__ import annotations

import os
import random
import re

import pytest

from otel_llm_callback import _sampling
from otel_llm_callback._sampling import SAMPLE_SIZE, Reservoir, new_id


@pytest.fixture
def seeded(monkeypatch):
    """The generator of the sampler, with a fixed seed."""
    monkeypatch.setattr(_sampling, "_random", random.Random(20261123))


def sample(size):
    """A sample of the numbers below *size*, taken the way an exchange does it."""
    reservoir = Reservoir()
    for number in range(size):
        if number >= reservoir.next_at:
            reservoir.add(number)
    return reservoir.values


def skipping_sample(size):
    """The same, going from one wanted number to the next."""
    reservoir = Reservoir()
    while reservoir.next_at < size:
        reservoir.add(reservoir.next_at)
    return reservoir.values


@pytest.mark.parametrize("size", [0, 1, 2, SAMPLE_SIZE - 1, SAMPLE_SIZE])
def test_small_sample_is_exact(size):
    """Up to 64 numbers are all kept, in order."""
    assert sample(size) == list(range(size))


@pytest.mark.parametrize("size", [SAMPLE_SIZE + 1, 100, 1000, 100_000])
def test_large_sample_is_bounded(seeded, size):
    """Beyond 64 there are 64 different ones."""
    values = sample(size)
    assert (len(values), len(set(values))) == (SAMPLE_SIZE, SAMPLE_SIZE)
    assert set(values) <= set(range(size))


@pytest.mark.parametrize("size", [96, 640])
def test_every_number_has_the_same_chance(seeded, size):
    """Early, middle and late numbers are kept equally often: a chi-square test with a fixed seed."""
    runs, cells = 3000, 32
    counts = [0] * cells
    for _ in range(runs):
        for value in skipping_sample(size):
            counts[value * cells // size] += 1
    expected = runs * SAMPLE_SIZE / cells
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_square < 61.1  # 99.9 % of fair samplers stay below this with 31 degrees of freedom


def test_skipping_takes_what_looking_at_each_takes(monkeypatch):
    """`next_at` names exactly the numbers that are wanted."""
    for seed in range(20):
        monkeypatch.setattr(_sampling, "_random", random.Random(seed))
        looked = sample(5000)
        monkeypatch.setattr(_sampling, "_random", random.Random(seed))
        assert skipping_sample(5000) == looked


def test_few_of_many_are_touched(seeded):
    """A million numbers cost a few hundred draws."""
    reservoir, taken = Reservoir(), 0
    while reservoir.next_at < 1_000_000:
        reservoir.add(reservoir.next_at)
        taken += 1
    assert SAMPLE_SIZE < taken < 1000


def test_the_extremes_of_the_generator_are_harmless(monkeypatch):
    """A draw of exactly zero neither divides by zero nor stops the sample."""

    class Zero(random.Random):
        def random(self):
            return 0.0

    monkeypatch.setattr(_sampling, "_random", Zero())
    assert len(sample(1000)) == SAMPLE_SIZE


def test_global_generator_is_left_alone():
    """A program that seeds `random` gets its numbers with us as without."""
    random.seed(1)
    expected = random.random()
    random.seed(1)
    sample(1000)
    new_id()
    assert random.random() == expected


def test_ids_are_unique_hex():
    """32 lower-case hex digits, no two alike."""
    ids = {new_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(re.fullmatch(r"[0-9a-f]{32}", known) for known in ids)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_ids_differ_after_a_fork():
    """A child does not repeat its parent's ids."""
    source, sink = os.pipe()
    if (child := os.fork()) == 0:
        os.write(sink, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(source, 32).decode() != new_id()
    os.close(source)
    os.close(sink)
