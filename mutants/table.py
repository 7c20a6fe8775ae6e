"""Which modules are mutated, and the tests that concern each: those first which notice most in the least time."""

PACKAGE = "src/fastvsock"

CORE = (
    "tests/core/test_relay.py",
    "tests/core/test_relay_stop.py",
    "tests/core/test_engines.py",
    "tests/core/test_short_results.py",
    "tests/core/test_relay_leaks.py",
    "tests/core/test_splice_used.py",
)
SERVICE = (
    "tests/service/test_relaying.py",
    "tests/service/test_lifecycle.py",
    "tests/service/test_limits.py",
    "tests/service/test_half_failures.py",
)
OWNERSHIP = (
    "tests/service/test_ownership.py",
    "tests/service/test_socket_owners.py",
    "tests/service/test_strangers.py",
)

TESTS: dict[str, tuple[str, ...]] = {
    "handshake.py": (
        "tests/core/test_handshake.py",
        "tests/api/test_connect.py",
        "tests/connect/test_handshake.py",
        "tests/connect/test_wait.py",
        "tests/connect/test_paths.py",
    ),
    "engines/__init__.py": ("tests/core/test_engines.py", "tests/core/test_short_results.py", *CORE[:2], *CORE[4:]),
    "engines/_copy.py": ("tests/core/test_engines.py", "tests/core/test_short_results.py", *CORE[:2], *CORE[4:]),
    "relaying.py": (*CORE, "tests/connect/test_reader_ends.py", "tests/connect/test_behaviour.py"),
    "services/ownership.py": OWNERSHIP,
    "services/limits.py": ("tests/service/test_limits.py", "tests/service/test_many_connections.py"),
    "services/lifecycle.py": SERVICE,
    "services/acceptor.py": (*SERVICE, "tests/service/test_metrics.py", "tests/service/test_listen.py"),
    "services/peer_relay.py": ("tests/service/test_relaying.py", "tests/service/test_half_failures.py"),
}
