import shutil

import pytest
from backprop.core.events import Gpu
from backprop.hardware import estimate

MIB = 2**20


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 1024 kB\nMemAvailable: 4194304 kB\n")
    return tmp_path


def control_group(machine, limit, used=0, inactive=0):
    group = machine / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_available_memory_counts_what_can_be_given_back(machine):
    assert estimate.host_memory(machine) == estimate.Memory(8192 * MIB, 4096 * MIB)


def test_a_container_has_no_more_than_its_limit(machine):
    control_group(machine, 1024 * MIB, used=900 * MIB, inactive=400 * MIB)
    assert estimate.host_memory(machine) == estimate.Memory(1024 * MIB, 524 * MIB)


def test_a_container_without_limit_has_the_machines_memory(machine):
    control_group(machine, "max", used=900 * MIB)
    assert estimate.host_memory(machine) == estimate.Memory(8192 * MIB, 4096 * MIB)


def test_without_meminfo_the_available_memory_is_unknown(tmp_path):
    assert estimate.host_memory(tmp_path).available is None


def test_free_space_is_known_for_a_directory_that_is_not_made_yet(tmp_path):
    free = estimate.disk_free(tmp_path / "not" / "there" / "yet")
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_free_card_memory_is_what_nobody_uses_and_unknown_where_the_card_does_not_say():
    used_by_others = Gpu(index=0, name="card", memory_used=4 * MIB, memory_total=16 * MIB)
    assert estimate.card_memory(used_by_others) == estimate.Memory(16 * MIB, 12 * MIB)
    assert estimate.card_memory(Gpu(index=0, name="card", memory_total=16 * MIB)).available is None
    assert estimate.card_memory(Gpu(index=0, name="card")) == estimate.Memory(None, None)
