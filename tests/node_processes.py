"""What runs on the nodes of a local cluster."""

import psutil


def titles(node):
    """Titles of the processes of a node, in which Ray names an actor's class; none where the node is gone."""
    found = []
    try:
        below = psutil.Process(node.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return found
    for process in below:
        try:
            found += process.cmdline()[:1]
        except psutil.Error:  # it has ended meanwhile
            continue
    return found
