"""What happens where descriptors, threads or address space run out: connections wait, and none is lost."""

import errno
import resource

import pytest

from fastvsock import errors, handshake


def test_a_shortage_can_be_told_from_what_stays_so() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(errors.ConnectError) as caught:
            handshake.connect("/nowhere", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caught.value.errno == errno.EMFILE
