"""How fast it is, measured: real processes pinned to different cores, beside a baseline in the same run.

Law: the server's figure is its own CPU time, read from the kernel; what clients cost is never in it. Every
figure comes with the baseline measured in the same run, and the table shows their ratio.
"""
