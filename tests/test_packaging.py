"""What is shipped around the program says the same as the program, and is well-formed."""

from __future__ import annotations

import http.client
import http.server
import os
import re
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from containers import WORKER_IMAGE, engine_url, until
from smartscan import __version__
from smartscan.config import CONTROLLER_IMAGE, SETTINGS
from smartscan.config import WORKER_IMAGE as CONFIGURED_IMAGE
from smartscan.engine import Job
from smartscan.model import Resources

ROOT = Path(__file__).parents[1]
SCRIPTS = ["run_smart_scan.sh", "tests/docker-up", "tests/docker-down", "tools/lock.sh",
           "packaging/unraid/user-script.sh"]  # fmt: skip


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_images_are_labelled_with_the_packages_version() -> None:
    dockerfile = text("Dockerfile.smart")
    assert re.findall(r"^ARG VERSION=(.*)$", dockerfile, re.MULTILINE) == [__version__] * 2
    assert dockerfile.count('org.opencontainers.image.version="${VERSION}"') == 2


def test_images_compile_modules_that_there_are() -> None:
    """Where no image can be built, nobody else would notice that one has another name now."""
    loaded = re.findall(r'python3 -c "import ([^;"]*)[;"]', text("Dockerfile.smart").replace("\\\n", ""))
    names = [name.strip() for names in loaded for name in names.split(",")]
    assert {"smartscan.worker.guard", "smartscan.cli.scan"} <= set(names)
    for name in names:
        assert find_spec(name), name


def test_every_dependency_is_locked_with_its_hash() -> None:
    locked = set(re.findall(r"^([a-z0-9-]+)==", text("packaging/requirements/controller.txt"), re.MULTILINE))
    declared = re.search(r"^dependencies = \[(.*?)^\]", text("pyproject.toml"), re.MULTILINE | re.DOTALL)
    assert declared
    assert set(re.findall(r'"([a-z0-9-]+)', declared[1])) <= locked
    for name in ("controller", "build"):
        lines = text(f"packaging/requirements/{name}.txt").splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            assert not re.match(r"[a-z0-9-]+==", line) or following.startswith("    --hash=sha256:"), line


def test_the_script_names_the_images_that_the_program_uses() -> None:
    script = text("run_smart_scan.sh")
    assert f"\nWORKER_IMAGE={CONFIGURED_IMAGE}\n" in script
    assert f"\nCONTROLLER_IMAGE={CONTROLLER_IMAGE}\n" in script
    assert WORKER_IMAGE == CONFIGURED_IMAGE


def test_the_script_knows_which_options_have_values() -> None:
    listed = re.search(r'^VALUE_OPTIONS="(.*?)"', text("run_smart_scan.sh"), re.MULTILINE | re.DOTALL)
    assert listed
    known = set(listed[1].replace("\\\n", " ").split())
    assert known == {setting.flag for setting in SETTINGS if setting.flag and setting.kind is not bool}


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_scripts(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    shell = "bash" if "bash" in text(name).partition("\n")[0] else shutil.which("dash") or "sh"
    subprocess.run([shell, "-n", ROOT / name], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, ROOT / name], check=True)


def test_the_unraid_template_has_what_the_catalogue_of_applications_wants() -> None:
    template = ElementTree.parse(ROOT / "packaging/unraid/smart-scanner.xml").getroot()
    assert (template.tag, template.get("version")) == ("Container", "2")
    for element in ("Name", "Repository", "Overview", "Category", "Icon", "Project", "Support",
                    "TemplateURL"):  # fmt: skip
        assert (template.findtext(element) or "").strip(), element
    assert template.find("WebUI") is not None
    assert template.findtext("Privileged") == "false"
    assert template.findtext("Repository") == CONTROLLER_IMAGE
    entries = {entry.get("Target"): entry for entry in template.findall("Config")}
    assert {"/data", "/var/run/docker.sock", "PUID", "PGID", "UMASK"} <= entries.keys()
    assert "TZ" not in entries  # Unraid injects it, and a second one wins over the server's
    assert entries["PUID"].text == "99"
    assert entries["PGID"].text == "100"
    assert "/mnt/user" in entries["/data"].get("Description", "")
    settings = {setting.env for setting in SETTINGS}
    for target, entry in entries.items():
        assert {"Name", "Target", "Default", "Mode", "Description", "Type", "Display", "Required",
                "Mask"} == set(entry.keys())  # fmt: skip
        assert not str(target).startswith("SMART_SCAN_") or target in settings


def test_there_is_one_address_of_the_project() -> None:
    files = ("smart-scanner.xml", "ca_profile.xml")
    pattern = r"https://(?:raw\.githubusercontent|github)\.com/([^/<]+/[^/<]+)"
    found = [name for file in files for name in re.findall(pattern, text(f"packaging/unraid/{file}"))]
    assert len(set(found)) == 1


def test_the_unraid_profile_is_not_empty() -> None:
    profile = ElementTree.parse(ROOT / "packaging/unraid/ca_profile.xml").getroot()
    assert profile.tag == "CommunityApplications"
    assert (profile.findtext("Profile") or "").strip()
    ElementTree.parse(ROOT / "packaging/unraid/icon.svg")
    assert (ROOT / "packaging/unraid/icon.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.socket-proxy.yaml"])
def test_compose_files(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(text(name))["services"]
    scan = services["scan"]
    assert scan["image"] == CONTROLLER_IMAGE
    assert scan["read_only"]
    assert scan["init"]
    assert scan["restart"] == "no"
    assert {"PUID", "PGID", "UMASK", "TZ"} <= scan["environment"].keys()
    targets = [volume["target"] for volume in scan["volumes"]]
    if "socket-proxy" in services:
        assert targets == ["/data"]
        assert scan["environment"]["DOCKER_HOST"] == "tcp://socket-proxy:2375"
    else:
        assert targets == ["/data", "/var/run/docker.sock"]
        assert scan["network_mode"] == "none"
        assert services["worker"]["image"] == CONFIGURED_IMAGE
        assert services["worker"]["profiles"] == ["build"]


def allowed_calls() -> dict[str, str]:
    """Read the proxy's allowlist, one pattern per method."""
    found = re.findall(r"^ +- -allow(GET|POST|DELETE)=(.*)$", text("compose.socket-proxy.yaml"), re.MULTILINE)
    return dict(found)


class EngineConnection(http.client.HTTPConnection):
    """HTTP over the engine's Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


@contextmanager
def guarded_engine(engine: str, *, cpu_quota: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Stand before an engine as the socket proxy does; gives its address and the calls it refused.

    Without `cpu_quota` it refuses as the engines of some NAS models do.
    """
    allowed, refused = allowed_calls(), []

    class Guard(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not re.fullmatch(allowed[self.command], self.path.partition("?")[0]):
                refused.append(f"{self.command} {self.path}")
                self.answer(403, b'{"message": "not allowed"}')
            elif not cpu_quota and b'"NanoCpus": 1' in body:
                self.answer(400, b'{"message": "NanoCPUs can not be set, as your kernel does not support CPU '
                                 b'CFS scheduler or the cgroup is not mounted"}')  # fmt: skip
            else:
                connection = EngineConnection(engine.removeprefix("unix://"))
                connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                self.answer(answer.status, answer.read(), answer.headers.get("Content-Type", ""))
                connection.close()

        def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

        do_GET = do_POST = do_DELETE = forward

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{server.server_port}", refused
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.docker
@pytest.mark.parametrize("cpu_quota", [True, False])
def test_the_socket_proxy_lets_through_all_that_a_worker_needs(tmp_path: Path, cpu_quota: bool) -> None:
    from smartscan.engine import docker

    (tmp_path / "share").mkdir()
    (tmp_path / "1-1").mkdir()
    namespace = uuid.uuid4().hex[:12]
    resources = Resources(1.0, 2**26)
    job = Job(1, "Media", 1, 1, os.fsencode(tmp_path / "share"), tmp_path / "1-1", resources)
    with guarded_engine(engine_url(), cpu_quota=cpu_quota) as (url, refused):
        program = ("python3", "-c", "print('done')")
        engine = docker.Docker(namespace, url=url, image=WORKER_IMAGE, command=program)
        engine.check()
        worker_id = engine.start(job)
        status = until(lambda: engine.status(worker_id), lambda status: status.state == "exited")
        assert (status.exit_code, status.log_tail) == (0, "done\n")
        assert engine.kill(worker_id)
        assert [found.worker_id for found in engine.find(namespace)] == [worker_id]
        assert engine.remove(worker_id)
        assert ("no quota" in engine.describe()[0]) != cpu_quota
        engine.close()
    assert refused == []


def test_the_socket_proxy_lets_nothing_else_through() -> None:
    allowed = allowed_calls()
    for call in (
        "POST /v1.41/containers/abc/exec", "POST /v1.41/images/create", "POST /v1.41/build",
        "POST /v1.41/volumes/create", "DELETE /v1.41/volumes/x", "POST /v1.41/containers/prune",
        "POST /v1.41/volumes/prune", "GET /v1.41/containers/abc/archive", "GET /v1.41/secrets",
        "DELETE /v1.41/images/x", "POST /v1.41/containers/abc/update", "GET /v1.41/images/json",
    ):  # fmt: skip
        method, path = call.split()
        assert not re.fullmatch(allowed[method], path), call
