"""Starting the application: proxies of the system, addresses."""

import os
import socket
import urllib.request

import pytest
from app_tools import Server, make_onnx

from aidet.app import server
from aidet.errors import UserError


def test_no_proxy_of_the_system_reaches_the_page(monkeypatch):
    """The HTTP client inside Gradio raises with a SOCKS proxy, and nothing is requested from other hosts anyway."""
    before = dict(os.environ)
    for name in ("ALL_PROXY", "all_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    try:
        server.prepare()
        assert not [name for name in os.environ if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_the_reason_why_an_address_cannot_be_used():
    with pytest.raises(UserError, match="--host 'no.such.host.invalid': .*give 127.0.0.1 for this machine alone"):
        server.check_address("no.such.host.invalid", 7860)
    with pytest.raises(UserError, match="--host '203.0.113.7' is no address of this machine"):
        server.check_address("203.0.113.7", 7860)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(1)
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: the port is in use; choose another"):
            server.check_address("127.0.0.1", port)
    server.check_address("127.0.0.1", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_free_port_of_either_family_of_addresses(host):
    try:
        server.check_address(host, 0)
    except UserError:
        pytest.skip(f"{host} is no address of this machine")
    server.check_address(host, server.free_port(host))


def test_it_serves_an_ipv6_address(tmp_path):
    """Gradio asks itself at the address that it was given, which is none without the brackets."""
    pytest.importorskip("gradio", reason="Gradio 6 needs Python 3.10")
    try:
        server.check_address("::1", 0)
    except UserError:
        pytest.skip("no IPv6 here")
    make_onnx(tmp_path)
    running = Server(tmp_path, "--ckpt", tmp_path / "tiny.onnx", "--localizer", "none", "--host", "::1")
    try:
        assert running.url.startswith("http://[::1]:")
        assert urllib.request.urlopen(running.url, timeout=20).status == 200
    finally:
        running.stop()
