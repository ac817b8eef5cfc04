from backprop.hardware.nvml import nvml_problem, other_processes, throttle_names


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


def pci_device(root, vendor, kind):
    folder = root / "sys/bus/pci/devices/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(vendor + "\n")
    (folder / "class").write_text(kind + "\n")


def library_not_found(root):
    return nvml_problem(12, "NVML Shared Library Not Found", root).cause


def test_no_card_on_the_bus_is_told_from_a_card_without_driver(tmp_path):
    assert library_not_found(tmp_path) == "no_card"
    pci_device(tmp_path, "0x10de", "0x030000")
    assert library_not_found(tmp_path) == "no_driver"


def test_nvidias_other_chips_are_no_graphics_cards(tmp_path):
    pci_device(tmp_path, "0x10de", "0x020000")  # a network adapter
    assert library_not_found(tmp_path) == "no_card"


def test_a_running_driver_whose_library_is_missing_points_to_the_container(tmp_path):
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: 550\n")
    problem = nvml_problem(12, "", tmp_path)
    assert problem.cause == "no_library"
    assert "--gpus all" in problem.hint
