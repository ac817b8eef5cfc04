from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "numpy", "pyarrow")


def test_the_application_starts_without_any_of_the_heavy_libraries() -> None:
    script = (
        "import asyncio, sys\n"
        "import backprop_tui.main\n"
        "from backprop_tui.app import BackpropApp\n"
        "async def go():\n"
        "    async with BackpropApp().run_test() as pilot:\n"
        "        await pilot.press('1', '2', 'question_mark', 'escape')\n"
        "asyncio.run(go())\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
