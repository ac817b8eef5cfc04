from backprop.hardware.nvml import other_processes, throttle_names


def test_throttle_reasons_are_named_and_idle_is_none():
    assert throttle_names(0x0) == []
    assert throttle_names(0x1) == []
    assert throttle_names(0x48) == ["hardware_slowdown", "hardware_thermal"]


def test_a_throttle_reason_without_a_name_keeps_its_number():
    assert throttle_names(0x4 | 0x800) == ["power_cap", "reason_0x800"]


def test_this_process_is_not_another_one():
    assert other_processes([7], own=7, same_namespace=True) == 0
    assert other_processes([7, 8, 9], own=7, same_namespace=True) == 2
    assert other_processes([8, 9], own=7, same_namespace=True) == 2


def test_in_a_container_that_sees_foreign_ids_the_number_is_unknown():
    assert other_processes([8, 9], own=7, same_namespace=False) is None
    assert other_processes([], own=7, same_namespace=False) == 0
