"""The first process of a container: it reaps what nobody else waits for, and passes signals on.

Process 1 inherits orphans: what `kubectl exec` has left, or a program that an async handler started
and that went into the background. Each stays a zombie until process 1 waits for it, and zombies
count towards the pod's limit of processes. The worker cannot wait for all of its children: it would
take the exit status of those that the fork server's replacement, asyncio or a handler's
`subprocess` wait for. So a worker that is process 1 forks once, before anything is imported: its
child is the worker, and process 1 does nothing but this.

* A signal is passed on as it is, but one that a terminal sent: its whole group has got that.
* When the worker ends, so does process 1, with its exit code, or with 128 + the number of the
  signal that ended it; the kernel then kills what is left in the container.
"""

from __future__ import annotations

import os
import signal

#: What may be meant for the worker; all others keep their effect.
_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

#: `si_code` of a signal from the kernel, such as a terminal's.
_SI_KERNEL = 0x80


def fork_worker() -> int | None:
    """Go on in a child of this process, which reaps and passes signals on until that has ended.

    Returns:
        None in the child; here its exit code.
    """
    awaited = {*_PASSED_ON, signal.SIGCHLD}
    # From before the fork on: none gets lost, and those for process 1 have no other effect.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    worker = os.fork()
    if worker == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    while True:
        status = _reap(worker)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        received = signal.sigwaitinfo(awaited)
        if received.si_signo in _PASSED_ON and received.si_code != _SI_KERNEL:
            os.kill(worker, received.si_signo)


def _reap(worker: int) -> int | None:
    """Wait for all that have ended; return the worker's wait status if it is among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == worker:
            return status
        if pid == 0:
            return None
