"""``--host`` over the real thing: an sshd of this test's own, where there is one."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE
from place import program
from terminal import Terminal

SSH, SSHD = shutil.which("ssh"), shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
PINNED = ("PYTHONPATH", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")

pytestmark = pytest.mark.skipif(SSH is None or SSHD is None, reason="needs ssh and sshd")


@pytest.fixture
def server() -> Iterator[Path]:
    """A folder with the configuration of a client for which ``box`` is this machine, and its ``ssh`` in ``bin``."""
    folder = Path(tempfile.mkdtemp(prefix="sshd-", dir="/tmp"))
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "DATA", "CONFIG", "STATE")}
    variables = " ".join(
        f'"{name}={value}"' for name, value in {**places, **{n: os.environ[n] for n in PINNED}}.items()
    )
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/key.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nSetEnv {variables}\n"
    )
    (folder / "config").write_text(
        f"Host box\nHostName 127.0.0.1\nPort {port}\nUser {getpass.getuser()}\nIdentityFile {folder}/key\n"
        f"IdentitiesOnly yes\nUserKnownHostsFile {folder}/known\nStrictHostKeyChecking accept-new\n"
    )
    (folder / "bin").mkdir()
    ssh = folder / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\necho $$ > {folder}/pid\nexec {SSH} -F {folder}/config "$@"\n')
    ssh.chmod(0o700)
    daemon = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE)
    try:
        assert daemon.stderr is not None
        said = b""
        while b"listening" not in said:
            if not (line := daemon.stderr.readline()):
                pytest.skip(f"sshd does not start here: {said.decode(errors='replace')}")
            said += line
        yield folder
    finally:
        daemon.terminate()
        daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_real_connection_opens_is_cut_and_comes_back(server: Path) -> None:
    variables = {"PATH": f"{server / 'bin'}:{os.environ['PATH']}", "BACKPROPAGATE_REMOTE_COMMAND": program("backprop")}
    argv = [program("backprop-tui"), "--host", "box"]
    with Terminal(argv, columns=100, rows=30, env=variables) as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        terminal.send("1")
        terminal.wait_for("No dataset is open", PATIENCE)
        before = len(terminal.output)
        os.kill(int((server / "pid").read_text()), signal.SIGKILL)
        terminal.wait_for("connection lost, the run goes on", PATIENCE)
        terminal.wait_until(lambda: b"No dataset is open" in terminal.output[before:], PATIENCE, "the same screen")
        terminal.wait_gone("connection lost", PATIENCE)
        terminal.send("q")
        assert terminal.wait_exit(PATIENCE) == 0
        assert terminal.is_clean
        assert terminal.echoes
