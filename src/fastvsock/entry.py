"""The name that `runcvm_vsock_connect` had in 0.1: launchers which 0.1 has installed import it. It goes with 0.3."""

from .runcvm_vsock_connect import main as main

if __name__ == "__main__":
    main()
