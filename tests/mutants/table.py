"""Which modules are mutated, and the tests that concern each: those first which notice most in the least time."""

PACKAGE = "src/fastvsock"

ENGINES = (
    "tests/core/test_engine_choice.py",
    "tests/core/test_pipe_budget.py",
    "tests/core/test_engines.py",
    "tests/core/test_pipes.py",
    "tests/core/test_short_results.py",
    "tests/core/test_relay_stop.py",
    "tests/core/test_relay.py",
    "tests/connect/test_terminal.py",
)
CHANNELS = (
    "tests/channels/test_endings.py",
    "tests/channels/test_exec.py",
    "tests/channels/test_guest.py",
    "tests/channels/test_terminal.py",
)
SERVICE = (
    "tests/service/test_relaying.py",
    "tests/service/test_lifecycle.py",
    "tests/service/test_rejections.py",
    "tests/service/test_limits.py",
    "tests/service/test_half_failures.py",
    "tests/service/test_idle.py",
)

TESTS: dict[str, tuple[str, ...]] = {
    "handshake.py": (
        "tests/core/test_attempts.py",
        "tests/core/test_handshake.py",
        "tests/api/test_connect.py",
        "tests/connect/test_handshake.py",
        "tests/connect/test_wait.py",
        "tests/connect/test_paths.py",
        "tests/connect/test_usage.py",
    ),
    "engines/__init__.py": ENGINES,
    "engines/_copy.py": (
        "tests/core/test_pipe_sizes.py",
        "tests/core/test_copy_decisions.py",
        "tests/core/test_copy_descriptors.py",
        *ENGINES,
    ),
    "relaying.py": (
        "tests/core/test_relay_decisions.py",
        "tests/core/test_relay_descriptors.py",
        "tests/core/test_relay_waiting.py",
        "tests/core/test_relay.py",
        "tests/core/test_relay_stop.py",
        "tests/core/test_half_close.py",
        "tests/core/test_idle_timeout.py",
        "tests/connect/test_near_end_gone.py",
        "tests/connect/test_reader_ends.py",
        "tests/connect/test_half_close.py",
        "tests/core/test_relay_leaks.py",
        "tests/service/test_peer_leaves.py",
    ),
    "channels/protocol.py": (
        "tests/channels/test_protocol.py",
        "tests/channels/test_machine.py",
        "tests/channels/test_endings.py",
    ),
    "channels/client.py": (*CHANNELS, "tests/channels/test_forward.py"),
    "agent/work.py": (*CHANNELS, "tests/channels/test_agent.py", "tests/channels/test_forward.py"),
    "agent/server.py": ("tests/channels/test_cids.py", "tests/channels/test_agent.py", *CHANNELS),
    "services/ownership.py": (
        "tests/service/test_families.py",
        "tests/service/test_orphans.py",
        "tests/service/test_ownership.py",
        "tests/service/test_socket_owners.py",
        "tests/service/test_rejections.py",
        "tests/service/test_strangers.py",
    ),
    "services/limits.py": ("tests/service/test_waiting_for_resources.py", "tests/service/test_limits.py"),
    "services/lifecycle.py": (
        "tests/service/test_lifecycle_decisions.py",
        "tests/service/test_command_decisions.py",
        *SERVICE,
        "tests/service/test_command_signals.py",
        "tests/service/test_children.py",
    ),
    "services/acceptor.py": (
        "tests/service/test_acceptor_decisions.py",
        "tests/service/test_connection_counts.py",
        *SERVICE,
        "tests/service/test_metrics.py",
        "tests/service/test_listen.py",
    ),
    "services/peer_relay.py": (
        "tests/service/test_peer_leaves.py",
        "tests/service/test_relaying.py",
        "tests/service/test_half_close.py",
        "tests/service/test_half_failures.py",
        "tests/service/test_idle.py",
    ),
}
