"""Benchmarks: real processes on different cores, beside a baseline in the same run.

Law: the server's figure is its own CPU time, read from the kernel, so the clients' cost is never in it. Each
figure comes with a baseline that was measured in the same run, and the table shows their ratio.
"""
