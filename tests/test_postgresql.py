"""A study on a real PostgreSQL: a private cluster on loopback, from the system's own package."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import optuna
import pytest

import hpo
from hpo import storage

INITDB = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) + [Path(p) for p in [shutil.which("initdb")] if p]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Return the URL of a database that the password `canary` opens."""
    if not INITDB:
        pytest.skip("PostgreSQL is not installed (initdb not found): its storage is NOT tested here")
    folder, binaries = tmp_path_factory.mktemp("postgresql"), INITDB[-1].parent
    as_user = []
    if os.geteuid() == 0:  # a server refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        for parent in (folder, *folder.parents):
            if parent.owner() == "root" and parent != Path("/") and parent.is_relative_to(folder.parents[1]):
                parent.chmod(0o755)
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "password").write_text("canary")
    (folder / "password").chmod(0o644)

    def run(program, *arguments):
        command = [*as_user, str(binaries / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    run("initdb", "-U", "tuner", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", settings, "start")
    yield f"postgresql://tuner:canary@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-m", "immediate", "stop")


def test_a_study_is_kept_and_goes_on(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = hpo.optimize(lambda params: params["x"], {"x": hpo.Float(0, 1)}, trials=4, storage=url, name="kept")
    before = [trial.params for trial in first.trials]
    again = hpo.optimize(lambda params: params["x"], {"x": hpo.Float(0, 1)}, trials=6, storage=url, name="kept")
    assert [trial.params for trial in again.trials[:4]] == before
    assert len(optuna.load_study(study_name="kept", storage=storage.connect(url)).trials) == 6


def test_a_wrong_password_is_an_error_without_a_password(url):
    with pytest.raises(hpo.HpoError) as caught:
        storage.connect(url.replace("canary", "sparrow"))
    assert "cannot be opened" in str(caught.value)
    assert "sparrow" not in str(caught.value)
