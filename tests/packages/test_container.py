"""
C{Containerfile}: the image is built and started with buildah, on a base that is made here, as no
registry is needed then.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

PROJECT = Path(__file__).parents[2]
IMAGE = "localhost/usbipshare-test"
BASE = "localhost/usbipshare-test-base"
SECONDS = 1200
PATIENCE = 120.0

NEEDED = {"buildah": "buildah", "debootstrap": "debootstrap"}
"""Programs, and the Debian packages with them."""

INCLUDED = "ca-certificates,kmod,python3,python3-venv,usb.ids"
"""What the base contains beyond a minimal Debian, so that the image's own steps find it."""

FROM_HERE = ("/etc/pip.conf", "/etc/ssl/certs", "/opt/wheels", "/opt/pypi", "/opt/pypi-more")
"""Where this machine says how packages are reached."""

MIRROR = "http://deb.debian.org/debian"


def run(*command: str, seconds: float = SECONDS) -> str:
    """Run a program that has to succeed; returns its standard output."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{command}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr}")
    return done.stdout.strip()


def buildah(*arguments: str) -> str:
    """Run buildah."""
    return run("buildah", *arguments)


def descendants(process: int) -> Iterator[int]:
    """The ids of the children of a process, and of theirs."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    for child in " ".join(path.read_text() for path in children).split():
        yield int(child)
        yield from descendants(int(child))


def freePort() -> int:
    """A port that nothing uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def makeBase(folder: Path) -> None:
    """Make the image that takes the place of C{debian:bookworm-slim}, unless it is there."""
    if BASE in run("buildah", "images", "--format", "{{.Name}}"):
        return
    root = folder / "root"
    run("debootstrap", "--variant=minbase", f"--include={INCLUDED}", "bookworm", str(root), MIRROR)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(root), "/")
    buildah("commit", "--quiet", container, BASE)
    buildah("rm", container)
    shutil.rmtree(root)


class ContainerTests(SynchronousTestCase):
    """
    The image.
    """

    def setUp(self) -> None:
        missing = [package for program, package in NEEDED.items() if not shutil.which(program)]
        if missing:
            self.fail(f"apt-get install {' '.join(missing)}")

    def build(self) -> dict[str, Any]:
        """Build the image; returns its configuration."""
        makeBase(Path(self.mktemp()).absolute())
        mounts = [f"--volume={path}:{path}:ro" for path in FROM_HERE if os.path.exists(path)]
        buildah(
            *("build", "--isolation=chroot", "--format=docker", "--pull-never", "--layers"),
            *(f"--build-arg=BASE={BASE}", f"--tag={IMAGE}"),
            *mounts,
            str(PROJECT),
        )
        inspected = json.loads(buildah("inspect", "--type=image", IMAGE))
        config: dict[str, Any] = inspected["Docker"]["config"]
        return config

    @contextlib.contextmanager
    def started(self, command: list[str], *mounts: str) -> Iterator[str]:
        """Start a container; its id. In the end the daemon in it is stopped."""
        container = buildah("from", "--pull-never", IMAGE)
        self.addCleanup(buildah, "rm", container)
        options = [f"--volume={mount}" for mount in mounts]
        run_ = ["buildah", "run", "--isolation=chroot", *options, container, "--", *command]
        log = Path(self.mktemp())
        with log.open("w") as output:
            process = subprocess.Popen(run_, stdout=output, stderr=output, start_new_session=True)
        try:
            yield container
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text()}") from error
        finally:
            # A signal to buildah has the daemon killed before it has ended.
            for child in descendants(process.pid):
                if Path(f"/proc/{child}/cmdline").read_text().startswith("/opt/usbipshare/bin/"):
                    os.kill(child, signal.SIGTERM)
            process.wait(PATIENCE)
        self.assertIn("stopped", log.read_text())

    def until(self, container: str, *mounts: str, place: str = "") -> None:
        """Wait until the health check succeeds.

        @param place: a port that is not the one of the image."""
        check = self.config["Healthcheck"]["Test"]
        self.assertEqual(check[0], "CMD")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                volumes = [f"--volume={mount}" for mount in mounts]
                command = [*check[1:], *([place] if place else [])]
                buildah("run", "--isolation=chroot", *volumes, container, "--", *command)
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def test_image(self) -> None:
        """The image is built. The server in it lists devices and the client service answers, each
        as the image says that it is started, without a file with a process id; the health check
        succeeds only while they run."""
        self.config = self.build()
        entry, command = self.config["Entrypoint"], self.config["Cmd"]
        self.assertEqual({*self.config["ExposedPorts"]}, {"5055/tcp", "3240/tcp"})
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        port, other = freePort(), freePort()
        (folder / "server.yaml").write_text(
            f"listen: ['tcp:{port}:interface=127.0.0.1']\n"
            f"export: {{listen: ['tcp:{other}:interface=127.0.0.1']}}\n"
            "backend: {type: virtual, devices: [{bus_id: 1-1, kind: inert}]}\n"
        )
        with self.started([*entry, *command], f"{folder}:/etc/usbipshare") as container:
            self.until(container, place=str(port))
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
                connection.sendall(b'{"command":"list"}\n')
                listed = json.loads(connection.makefile().readline())
            self.assertEqual([device["bus_id"] for device in listed["data"]], ["1-1"])
        ended = subprocess.run(
            [
                "buildah",
                "run",
                "--isolation=chroot",
                container,
                "--",
                "python3",
                "/opt/usbipshare/bin/usbipshare-healthcheck",
                str(port),
            ],
            check=False,
            capture_output=True,
            timeout=SECONDS,
        )
        self.assertEqual(ended.returncode, 1)

        (folder / "service.yaml").write_text("servers: {}\n")
        sockets = folder / "sockets"
        sockets.mkdir()
        client = [*entry, "usbipclient", "--config", "/etc/usbipshare/service.yaml"]
        mounts = (f"{folder}:/etc/usbipshare", f"{sockets}:/run/usbipshare")
        with self.started(client, *mounts) as container:
            self.until(container, *mounts)
