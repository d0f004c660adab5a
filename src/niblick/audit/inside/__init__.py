"""Code that runs in the sandboxed child process: it builds the walls, then loads the submission
behind them.

`launch` is the entry; `walls`, `seccomp` and `supervise` need only the standard library and the C
library, so that they run before any package is on the path. `worker` is the process that meets the
submission's code.
"""
