"""Imports the host once, which takes seconds, and runs what it is asked for in forks of itself.

Takes the number of a listening Unix socket. A connection is a run: JSON with `folder`,
`environment`, and `code` or the `arguments` of the host's console script, and with it the pipe for
its output. The answer is a line with the process id, and at the end one with the exit code.
"""

import json
import os
import socket
import sys
import traceback

import pu.__main__


def runs(listener):
    """Goes on in a process of its own for each run, and gives what was asked for."""
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            break
        connection.close()
    listener.close()
    request, pipes, _, _ = socket.recv_fds(connection, 1 << 20, 1)
    run = os.fork()
    if run:
        os.close(pipes[0])
        connection.sendall(b"%d\n" % run)
        _, status = os.waitpid(run, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    connection.close()
    os.dup2(pipes[0], 1)
    os.dup2(pipes[0], 2)
    os.close(pipes[0])
    return json.loads(request)


asked = runs(socket.socket(fileno=int(sys.argv[1])))
os.chdir(asked["folder"])
os.environ.update(asked["environment"])
code = 0
try:
    if "code" in asked:
        exec(asked["code"], {"__name__": "__main__"})
    else:
        sys.argv = ["platonic_universe", *asked["arguments"]]
        pu.__main__.main()
except BaseException:
    traceback.print_exc()
    code = 1
sys.stdout.flush()
os._exit(code)  # polars would wait at the end for a thread of its own, which no fork has
