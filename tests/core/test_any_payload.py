"""Whatever is sent, in whatever pieces and with whatever pauses, comes out at the other end: in order, and whole."""

import random
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastvsock.api import relay
from fastvsock.relaying import RelayResult
from support import HANG, Listener
from support.exchange import KINDS, PIECE, Ends, Shape, Way, commanding, exchange

EDGES = [1, 4096, 1 << 16, 1 << 20]  # a page, a default pipe, a raised pipe
# Uniformly from a list: left to itself, hypothesis tries small sizes and hardly anything else.
sizes = st.sampled_from(
    [
        0,
        *(edge + off for edge in EDGES for off in (-1, 0, 1)),
        *(random.Random(bits).randrange(1 << bits) for bits in range(8, 21)),
        *(random.Random(seed).randrange(1 << 20) for seed in range(12)),
    ]
)
shapes = st.builds(
    Shape,
    st.lists(
        st.tuples(
            st.one_of(st.integers(1, 9), st.integers(1, 9000), st.integers(1, PIECE), st.sampled_from(EDGES)),
            st.one_of(st.just(0), st.integers(0, 3000)),
        ),
        max_size=12,
    ),
)
ways = st.builds(Way, sizes, shapes, shapes)
# Derandomized: a run that fails can be run again, here and in CI.
bounded = partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("kind", KINDS)
@bounded(max_examples=120)
@given(up=ways, down=ways)
def test_a_relay_carries_any_payload_in_any_pieces_both_ways_at_once(
    engine: str, kind: str, up: Way, down: Way
) -> None:
    ends = Ends(kind)
    near, far = socket.socketpair()
    results: list[RelayResult | Exception] = []

    def run() -> None:
        try:
            results.append(relay(near, ends.rfd, ends.wfd, linger=0, engine=engine))
        except Exception as error:
            results.append(error)
        near.close()
        ends.close_theirs()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    arrived = exchange(ends, far, up, down)
    thread.join(HANG)
    (result,) = results
    assert (arrived, isinstance(result, RelayResult)) == ((up.sum, down.sum), True), result
    assert isinstance(result, RelayResult)
    assert (result.sent, result.received, result.ended) == (up.size, down.size, "guest")
    assert (result.up, result.down) == (engine, engine)


@pytest.mark.parametrize("kind", KINDS)
@bounded(max_examples=25)
@given(up=ways, down=ways)
def test_the_command_carries_any_payload_in_any_pieces_both_ways_at_once(
    engine: str, kind: str, up: Way, down: Way
) -> None:
    ends = Ends(kind)
    with TemporaryDirectory() as folder:
        listener = Listener(Path(folder) / "v.sock")
        with commanding(listener, ends, engine) as child:
            far = listener.accept()
            listener.close()
            assert exchange(ends, far, up, down) == (up.sum, down.sum)
            assert (child.wait(HANG), child.stderr and child.stderr.read()) == (0, b"")


def test_the_face_of_the_package_gives_the_function_relay_however_often_it_is_asked() -> None:
    # The module of the same name becomes an attribute of the package when it is imported.
    script = (
        "import fastvsock, fastvsock.runcvm_vsock_connect; fastvsock.relay; assert fastvsock.relay.__name__ == 'relay'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=HANG)
