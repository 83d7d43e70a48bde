"""The service, started and stopped many times: hooks, threads, file handles and tensors are as before."""

from pathlib import Path

import flat
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra `serve`")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: the extra `serve`")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_starts_and_stops_leave_nothing_behind(asgi, guard, rounds):
    async def one_request(app):
        return (await asgi.ask(app, "POST", "/v1/faces", b"no image", "image/png"))[0]

    def serve(times):
        for _ in range(times):
            assert asgi.during(guard, one_request) == 415

    before, after, more = flat.Work(do=serve, times=30, before=5).held(rounds)
    assert after == before
    assert more < flat.MOST_RESIDENT
