"""Stand-ins, used inside the sandbox only, for what a reviewer's machine lacks and a competitor's
has.

GPU packages (flash-attention, triton, `kernels`), CUDA itself and process groups get stand-ins good
enough to import a script, build its model and run it on a CPU; absent third-party packages get ones
good enough to import.
"""
