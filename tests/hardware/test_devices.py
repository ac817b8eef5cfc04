import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from backprop.hardware import devices

ROOT = Path(__file__).parents[2]

INFO = "from backprop.hardware.devices import info\nanswer(info())"


def test_info_has_the_keys_that_scripts_rely_on(play):
    info = play("cards 2\nname RTX Test\n55 memory=25\n", INFO)
    assert set(info) >= {"python", "torch", "cuda", "gpus", "extras", "platform"}
    assert [gpu["name"] for gpu in info["gpus"]] == ["RTX Test", "RTX Test"]
    assert info["gpus"][0]["vram_total"] == 16 * 2**30
    assert round(100 * info["gpus"][0]["vram_free"] / info["gpus"][0]["vram_total"]) == 75
    assert info["gpus"][0]["temperature"] == 55
    assert info["driver"] == "550.0-stand-in"
    assert info["driver_cuda"] == "12.4"


def test_info_without_a_card_says_why(play, no_library):
    info = play("", INFO, library=no_library)
    assert info["gpus"] == []
    assert info["driver"] is None
    assert "NVIDIA" in info["gpu_problem"]["message"]


def test_info_says_that_the_cards_are_hidden(play):
    assert play("55\n", INFO, env={"CUDA_VISIBLE_DEVICES": ""})["gpu_problem"]["cause"] == "hidden"


def test_info_says_that_the_torch_beside_a_card_cannot_use_it(play):
    cpu_torch = "from backprop.hardware import devices\ndevices.installed_torch = lambda: ('2.9.0+cpu', None)\n"
    info = play("55\n", cpu_torch + "answer(devices.info())")
    assert (info["gpu_problem"]["cause"], info["torch"], info["cuda"]) == ("cpu_torch", "2.9.0+cpu", None)


def test_info_imports_no_heavy_library():
    code = """
import json, sys
from backprop.hardware.devices import info
info()
heavy = {"torch", "transformers", "peft", "trl", "datasets", "numpy"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("__version__ = '2.9.0+cpu'\ncuda: Optional[str] = None\n", None),
        ("__version__ = '2.9.0'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "12.8"),
        ("cuda = '12.6'\n", "12.6"),
        ("hip: Optional[str] = '6.4'\ncuda: Optional[str] = None\n", None),
    ],
)
def test_the_cuda_version_is_read_from_torchs_version_file(text, cuda):
    assert devices.cuda_of_version_file(text) == cuda


def test_every_extra_of_the_project_is_listed_with_what_it_turns_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(devices.FEATURES) == set(project["optional-dependencies"]) - {"test"}
    assert set(devices.installed_extras()) == set(devices.FEATURES)


def fake_distribution(monkeypatch, requires, installed):
    def version(name):
        if name not in installed:
            raise devices.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(devices.metadata, "requires", lambda name: requires)
    monkeypatch.setattr(devices.metadata, "version", version)
    return devices.installed_extras()


def test_an_extra_counts_as_installed_only_in_the_version_that_is_needed(monkeypatch):
    requires = [
        'bitsandbytes>=0.48; extra == "qlora"',
        'textual-serve>=1.1; extra == "web"',
        'trackio; extra == "tracking"',
    ]
    extras = fake_distribution(monkeypatch, requires, {"bitsandbytes": "0.40", "textual-serve": "1.2"})
    assert (extras["qlora"].installed, extras["qlora"].missing) == (False, ["bitsandbytes>=0.48"])
    assert (extras["web"].installed, extras["web"].missing) == (True, [])
    assert (extras["tracking"].installed, extras["tracking"].missing) == (False, ["trackio"])
    assert extras["tracking"].install == 'pip install "backprop-tui[tracking]"'


def test_the_extra_that_names_other_extras_needs_all_of_them(monkeypatch):
    requires = [
        'a-lib>=1; extra == "qlora"',
        'b-lib; extra == "web"',
        'backprop-tui[qlora,web]; extra == "all"',
    ]
    assert fake_distribution(monkeypatch, requires, {"a-lib": "1.0"})["all"].missing == ["b-lib"]
    assert fake_distribution(monkeypatch, requires, {"a-lib": "1.0", "b-lib": "3"})["all"].installed


def test_an_extra_for_another_platform_is_not_called_installed(monkeypatch):
    extra = fake_distribution(monkeypatch, ['mlx-lm; sys_platform == "nowhere" and extra == "mlx"'], {})["mlx"]
    assert (extra.installed, extra.available, extra.missing) == (False, False, [])


def test_a_cpu_only_torch_beside_a_card_is_named():
    problem = devices.torch_problem("2.9.0+cpu", None)
    assert problem is not None
    assert problem.cause == "cpu_torch"
    assert "2.9.0+cpu" in problem.message
    assert devices.torch_problem("2.9.0", "12.8") is None
    assert devices.torch_problem(None, None).cause == "no_torch"


@pytest.mark.parametrize(("value", "hidden"), [("-1", True), ("", True), ("0", False)])
def test_hidden_cards_are_found_by_the_variable(monkeypatch, value, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    problem = devices.visibility_problem()
    assert (problem is not None and problem.cause == "hidden") == hidden
