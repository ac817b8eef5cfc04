"""The application in a page while a run is trained: by a real Chromium, and without one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from backprop.runs.directory import RunDirectory
from processes import kill_engine
from tiny_language_model import write_rows
from web_pages import PASSWORD, USER, Served


@pytest.fixture(scope="module")
def run(served: Served, tiny_model: Path) -> Iterator[RunDirectory]:
    """A run that goes on until the end of this file, started beside the server."""
    rows = write_rows(served.folder / "rows.jsonl")
    words = ["--data", str(rows), "--model", str(tiny_model), "--steps", "1000000", "--lora-r", "2", "--json"]
    with subprocess.Popen(
        [str(Path(sys.executable).with_name("backprop")), "train", *words, "--output", str(served.root)],
        cwd=served.folder,
        env=served.environment,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        first, kind = json.loads(process.stdout.readline()), ""
        while kind != "step":
            kind = json.loads(process.stdout.readline())["type"]
        process.kill()  # who watched; the engine goes on
    directory = RunDirectory(Path(first["output_dir"]))
    yield directory
    kill_engine(directory)


async def test_a_page_that_is_closed_ends_its_application_and_no_run(served: Served, run: RunDirectory) -> None:
    tab = "c" * 32
    async with served.page(tab) as page:
        await page.wait_for(run.run_id[:8])
        await page.press("\r")
        await page.wait_for("tokens/s")
    await served.wait_for_applications(0)
    assert run.is_locked()
    async with served.page(tab) as page:
        await page.wait_for("p pause")
        await page.wait_for(run.run_id[:8])
        assert "p pause" in page.text
    await served.wait_for_applications(0)
    assert run.is_locked()


@pytest.mark.skipif(not chromium.PROGRAM, reason="there is no Chromium on this machine")
async def test_in_chromium(served: Served, run: RunDirectory, tmp_path: Path) -> None:
    async with chromium.chromium(tmp_path) as open_tab:
        stranger = await open_tab(served.url)
        await stranger.wait_until(lambda: len(stranger.requested) > 0, "a request")
        assert (stranger.sockets, served.applications) == (0, [])

        url = f"http://{USER}:{PASSWORD.replace(' ', '%20')}@localhost:{served.port}/"
        tab = await open_tab(url)
        await tab.wait_for(run.run_id[:8])
        await tab.press("Enter")
        await tab.wait_for("tokens/s")
        await tab.press("?")
        await tab.wait_for("esc closes")
        await tab.press("Escape")
        await tab.wait_until(lambda: "esc closes" not in tab.text, "the end of the help")
        await tab.picture(tmp_path / "live.png")
        assert (tmp_path / "live.png").stat().st_size > 10_000  # text was drawn: an empty page takes a third of it
        await tab.call("Page.reload")
        await tab.wait_until(lambda: tab.sockets == 2, "the second websocket")
        await tab.wait_until(lambda: run.run_id[:8] in tab.text and "p pause" in tab.text, "the run on Live")
        assert {address.split("/")[2].rpartition("@")[2] for address in tab.requested} == {f"localhost:{served.port}"}
        assert tab.problems == []
        await served.wait_for_applications(1)  # that of the page before may take a moment to end

        foreign = await open_tab("about:blank")
        address = f"ws://localhost:{served.port}/ws/{'d' * 32}?width=80&height=24"
        opened = f"new Promise(done => {{ const s = new WebSocket('{address}'); "
        opened += "s.onopen = () => done('open'); s.onerror = () => done('refused') })"
        assert await foreign.evaluate(opened) == "refused"
        assert len(served.applications) == 1
    await served.wait_for_applications(0)
    assert run.is_locked()
