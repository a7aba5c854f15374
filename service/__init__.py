"""The process: settings, wiring, supervision, telemetry, the command line and the demo.

Everything that waits, starts tasks, reads the environment or forgives an error lives here; the other packages are told.
"""
