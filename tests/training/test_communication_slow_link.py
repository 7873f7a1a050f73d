"""On a slow link, made for real by a token bucket, a job that leaves its exchange open gets fewer bytes; needs root."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from engine import namespaces, runs

WHAT = "app: tests.network, seed: 3, width: 700"
HOW = "ranks: 2, steps: 4, batch: 8, checkpoint_every: 1h"
DENSE = 4 * (8 * 700 + 700 + 700 * 700 + 700 + 700 + 1)  # bytes of the gradients in fp32
LINK_BYTES_PER_S = 200e6 / 8

pytestmark = pytest.mark.skipif(bool(namespaces.why_not("tc")), reason=namespaces.why_not("tc"))


@pytest.mark.parametrize(
    ("consent", "kinds", "most_bytes"),
    [("", {"all_reduce", "bf16"}, 0.51 * DENSE), (", lossy: true", None, 0.1 * DENSE)],
    ids=["without consent", "with consent"],
)
def test_auto_sends_no_more_than_the_job_allows_and_is_quicker_than_fp32(
    consent: str, kinds: set[str] | None, most_bytes: float, tmp_path: Path
) -> None:
    how = f"{HOW}, communication: {{compression: auto, buckets: auto{consent}}}"
    job = runs.write_job(tmp_path, WHAT, how, "engine: local")
    with namespaces.empty() as network:
        # loopback's own packets would be larger than the bucket
        network.output("ip", "link", "set", "lo", "mtu", "1500")
        shape = ("rate", "200mbit", "burst", "256kb", "latency", "400ms")
        network.output("tc", "qdisc", "add", "dev", "lo", "root", "tbf", *shape)
        done = subprocess.run(
            network.within("muster", "run", str(job)),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    run = runs.newest(job)
    rows = [row for row in run.table("collectives").to_pylist() if (row["step"], row["rank"]) == (4, 0)]
    assert sum(row["bytes"] for row in rows) == DENSE
    assert sum(row["wire_bytes"] for row in rows) <= most_bytes
    assert kinds is None or {row["kind"] for row in rows} <= kinds
    (choice,) = json.loads((run.path / "communication.json").read_text())["choices"]
    tried = {one["name"]: one for one in choice["candidates"]}
    dense, chosen = tried["own buckets"], tried[choice["chosen"]]
    # The link alone takes so long: both directions share it. A busy machine adds to it, and only adds.
    assert dense["measured_s"] >= 2 * DENSE / LINK_BYTES_PER_S * 0.8
    assert dense["predicted_s"] >= 2 * DENSE / LINK_BYTES_PER_S * 0.8
    assert chosen["measured_s"] < dense["measured_s"]
    assert chosen["predicted_s"] < dense["predicted_s"]
