"""What can be watched of a service: its lines on stderr, and metrics for Prometheus."""

import os
import re
import urllib.request
from pathlib import Path

import pytest

from support import HANG, of_the_package
from support.services import FarEnd, eventually, receive, run_proxy, serving


def test_stats_are_lines_on_stderr(far_end: FarEnd) -> None:
    with serving("proxy", "--stats-interval", "0.2", far_end.uds, "7") as proxy, proxy.connect() as sock:
        sock.sendall(b"12345")
        assert receive(sock, 5) == b"12345"
        expected = (
            "fastvsock: 1 connections open, 1 taken, 0 failed, 0 rejected (0 of unknown owner); "
            "up 5 bytes, down 5 bytes\n"
        )
        eventually(lambda: proxy.child.stderr.readline().decode(), expected)


@of_the_package
def test_metrics_are_served_for_prometheus(far_end: FarEnd) -> None:
    pytest.importorskip("prometheus_client", reason="the extra fastvsock[metrics] is not installed")
    with serving("proxy", "--metrics", "127.0.0.1:0", far_end.uds, "7") as proxy, proxy.connect() as sock:
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", proxy.child.stderr.readline().decode())
        assert url
        sock.sendall(b"12345")
        assert receive(sock, 5) == b"12345"
        with urllib.request.urlopen(url.group(), timeout=HANG) as answer:
            lines = answer.read().decode().splitlines()
    assert "fastvsock_connections_open 1.0" in lines
    assert "fastvsock_connections_total 1.0" in lines
    assert 'fastvsock_bytes_total{direction="up"} 5.0' in lines
    assert 'fastvsock_bytes_total{direction="down"} 5.0' in lines


def test_without_the_prometheus_library_it_says_what_to_install(far_end: FarEnd, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = run_proxy("--metrics", "127.0.0.1:0", far_end.uds, "7", env=environment)
    assert done.returncode == 1
    assert done.stderr.endswith(b"pip install 'fastvsock[metrics]'\n")
    assert done.stderr.count(b"\n") == 1
