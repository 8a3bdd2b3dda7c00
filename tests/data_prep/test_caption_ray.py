"""`langdc data caption --ray` on a local cluster of two nodes with one core each. `make test-ray` runs it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from langdc import jsonl
from langdc.cli import door
from langdc.data.records import read_records
from tests.evaluate.runs import write_data

ray = pytest.importorskip("ray", reason="`make test-ray` runs this")
main = door("data caption")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes with one core each, under the address that `ray.init` looks for."""
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of the workers
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": 10**8}
        nodes = Cluster(initialize_head=True, head_node_args=node)
        nodes.add_node(**node)
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield
        ray.shutdown()
        nodes.shutdown()


def test_a_cluster_writes_what_one_process_writes(cluster, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", videos=10)
    (data.parent / "videos" / "v10.mp4").write_bytes(b"no video")
    given = [str(data.parent / "videos"), "--teacher", "sample:langdc", "--captioner", "--batch", "2", "--out"]
    assert main([*given, str(tmp_path / "alone.jsonl")]) == 1
    assert main([*given, str(tmp_path / "ray.jsonl"), "--ray", "2"]) == 1
    assert len(ray.nodes()) == 2 and ray.cluster_resources()["CPU"] == 2
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    lines = jsonl.read(tmp_path / "ray.jsonl.work/1-of-1.jsonl")
    assert len(lines) == 11 and sum("failed" in line for line in lines) == 1


def test_two_workers_ask_an_endpoint_at_once(cluster, endpoint, tmp_path: Path) -> None:
    """Each has one request under way; the first two are answered when both are there."""
    together = threading.Barrier(2, timeout=60)

    def reply(number: int, body: dict) -> str:
        if number <= 2:
            together.wait()
        return "a wall"

    write_data(tmp_path / "data", videos=8)
    server, out = endpoint(reply), tmp_path / "captions.jsonl"
    given = [str(tmp_path / "data/videos"), "--out", str(out), "--endpoint", server.url, "--model", "eye"]
    given += ["--endpoint-settings", '{"workers": 1, "retries": 0}', "--batch", "1", "--ray", "2"]
    assert main(given) == 0
    assert not together.broken and len(server.requests) == 32
    assert [len(record.segments) for record in read_records(out)] == [4] * 8
    assert main(given) == 0 and len(server.requests) == 32


def test_what_concerns_all_videos_is_one_line(cluster, endpoint, tmp_path: Path, capsys) -> None:
    write_data(tmp_path / "data", videos=2)
    server = endpoint((401, b"who are you"))
    given = [str(tmp_path / "data/videos"), "--out", str(tmp_path / "captions.jsonl")]
    assert main([*given, "--endpoint", server.url, "--model", "eye", "--ray", "2"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "HTTP 401" in said[0]
