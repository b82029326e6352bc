import os
import sys

import jax
import numpy as np
import pytest

from benchmarks import machine


@pytest.fixture
def started(monkeypatch):
    """The program that would replace this one."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "benchmarks.x", "--quick"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_starts_again_once_with_huge_pages(started, monkeypatch):
    machine.reexec_with_hugetlb("hugetlb")
    ((path, argv, environment),) = started
    assert (path, argv) == (sys.executable, [sys.executable, "-m", "benchmarks.x", "--quick"])
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])
    assert machine.malloc_setting() == "hugetlb"
    machine.reexec_with_hugetlb("hugetlb")
    assert len(started) == 1


def test_other_tunables_stay(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    machine.reexec_with_hugetlb("hugetlb")
    assert started[0][2]["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


def test_stays_where_it_is_asked_to_or_means_nothing(started, monkeypatch):
    machine.reexec_with_hugetlb("default")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    machine.reexec_with_hugetlb("hugetlb")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    machine.reexec_with_hugetlb("hugetlb")
    assert not started and machine.malloc_setting() == "default"


def test_limits_are_bytes_and_products_over_time(monkeypatch):
    class Timing:
        def __init__(self, minimum):
            self.seconds = self
            self.minimum = minimum

    monkeypatch.setattr(machine, "measure", lambda calls, **_: {name: Timing(0.5 + len(name)) for name in calls})
    times = {"rounds": 1}
    assert machine._bandwidth(2, times) == 2 * 2 * 2**20 / 4.5  # "copy" was the faster of the two
    assert machine._matmul_peak(4, "float32", times) == 2 * 4**3 / 7.5  # "default"


def test_the_product_is_of_random_numbers(monkeypatch):
    seen = []
    monkeypatch.setattr(machine.jnp, "matmul", lambda a, b: a @ b)
    monkeypatch.setattr(machine, "measure", lambda calls, **_: seen.extend(calls.values()) or pytest.skip)
    with pytest.raises(AttributeError):
        machine._matmul_peak(8, "float32", {})
    a, b = seen[0].args
    assert len(np.unique(a)) == 64 and not np.array_equal(a, b)


def test_the_roofline_is_the_tighter_of_two_limits():
    limits = {"copy_bandwidth": 10.0, "matmul_peak": {"float32": 100.0}}
    assert machine.roofline_share(limits, "float32", 20.0, 100.0, 4.0) == 0.5
    assert machine.roofline_share(limits, "float32", 20.0, 300.0, 4.0) == 0.75
    assert machine.roofline_share(limits, "bfloat16", 0.0, 300.0, 4.0) == 0.75


def test_the_description_names_what_counts():
    described = machine.describe()
    assert described["platform"] == "cpu" and described["cores"] >= 1
    assert {"jax", "jaxlib", "flax", "densezoo"} == set(described["versions"])
    assert {"xla_flags", "glibc_tunables", "malloc", "busy_cores"} <= set(described)
