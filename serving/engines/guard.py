"""Ends processes once the process that started them is gone, even where that was killed and could not end them itself.

vLLM's processes outlive a killed replica, and with them the GPU's memory that the next replica needs.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress


class Guard:
    """Watches over processes until it is closed. Linux alone.

    Args:
        pids: processes to kill when this one ends.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        # The pipe closes when this process ends, however it ends. A session of its own, so that what is sent to the
        # whole group does not end the watcher first. By path and isolated: it needs nothing but the standard library.
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", __file__, *map(str, pids)], stdin=subprocess.PIPE, start_new_session=True
        )

    def close(self) -> None:
        """Watch no more; the processes are left alone."""
        self._watcher.kill()
        self._watcher.wait()
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()


def _watch(pids: Sequence[int]) -> None:
    handles = []  # not numbers, which another process may have by then
    for pid in pids:
        with suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    while os.read(sys.stdin.fileno(), 1):
        pass
    for handle in handles:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)


if __name__ == "__main__":
    _watch([int(pid) for pid in sys.argv[1:]])
