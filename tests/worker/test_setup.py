from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

LOADING = "from backprop.worker.setup import quiet_libraries; quiet_libraries(); import torch"


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux")
@pytest.mark.parametrize(
    ("persons", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["by itself", "the count is the person's", "the policy is the person's"],
)
def test_threads_that_wait_leave_the_core_to_another_run(persons: dict[str, str], spins: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    environment |= {"OMP_DISPLAY_ENV": "verbose", **persons}

    told = subprocess.run([sys.executable, "-c", LOADING], env=environment, capture_output=True, text=True, check=True)

    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told.stderr)) == {spins}
