"""A server's certificate that ends in the midst of a run."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme

from hostile.load import wait
from support.fixtures_vim import DATA
from support.server_process import server_process
from vim_embed_client import Client, ServerUnreachableError

pytestmark = pytest.mark.hostile
PIXELS = np.random.default_rng(7).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_certificate_ends_and_is_renewed(tmp_path: Path, processes: str) -> None:
    """Open connections go on; new ones fail and say why; after SIGHUP with a new one all is well,
    and a client that retries does not even notice.
    """
    authority = trustme.CA()
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(ca))
    ends = datetime.now(UTC) + timedelta(seconds=30)

    def issue(until: datetime | None) -> None:
        issued = authority.issue_cert("127.0.0.1", not_after=until)
        issued.private_key_pem.write_to_path(str(key))
        for number, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(str(cert), append=number > 0)

    issue(ends)
    flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--http-processes", processes]
    flags += ["--model", f"micro={DATA / 'vim_micro.pth'}", "--keep-alive-timeout", "60"]
    with server_process(*flags) as started, Client(started.url, ca_file=str(ca)) as open_one:
        right = open_one.embed(PIXELS).embeddings
        while datetime.now(UTC) < ends + timedelta(seconds=1):
            assert np.allclose(open_one.embed(PIXELS).embeddings, right, rtol=1e-4, atol=1e-5)
        with (
            Client(started.url, ca_file=str(ca), max_retries=0) as new,
            pytest.raises(ServerUnreachableError, match="has expired: whoever runs"),
        ):
            new.embed(PIXELS)
        issue(None)
        started.process.send_signal(signal.SIGHUP)
        wait(
            lambda: started.log.read_text().count("certificate read again") == int(processes),
            "the certificate was not read again",
        )
        with Client(started.url, ca_file=str(ca)) as new:
            np.testing.assert_allclose(new.embed(PIXELS).embeddings, right, rtol=1e-4, atol=1e-5)
        assert httpx.get(f"{started.url}/health/live", verify=False).status_code == 200
